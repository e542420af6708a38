"""Which of a model's parameters an optimizer holds: by identity, never by value or position."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.selectors import inventory
from frostline.selectors.inventory import Entry
from frostline.sharding import is_distributed
from frostline.units import some_of

Group = dict[str, Any]  # torch's own type for a parameter group


@final
@dataclass(frozen=True, slots=True)
class ModelParams:
    """A model's parameters by `id()`, frozen and trainable; `title` is its class, for messages."""

    title: str
    by_id: Mapping[int, Entry]

    def of_group(self, group: Group) -> tuple[Entry, ...]:
        """Those that `group` holds, in its order."""
        found = (self.by_id.get(id(parameter)) for parameter in group["params"])
        return tuple(entry for entry in found if entry is not None)


def model_params(model: nn.Module) -> ModelParams:
    """All parameters of `model`; raises as `inventory`."""
    found = inventory(model)
    entries = [entry for entry in found.entries if isinstance(entry.tensor, nn.Parameter)]
    return ModelParams(found.title, {id(entry.tensor): entry for entry in entries})


def check_optimizer(optimizer: object) -> None:
    """Raises ConfigError for what is no torch optimizer, wraps one, or keeps one state over all."""
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer) or "param_groups" not in vars(optimizer):
        raise ConfigError(
            f"{kind} is no torch.optim.Optimizer with groups of its own. Pass the torch optimizer "
            "inside it, often `optimizer.optimizer`. A wrapper that keeps something of each "
            "parameter itself, as slow weights, is to be made anew with it."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS keeps one flat history over all its parameters, so none can join or leave and "
            "no state has a name. Make a new one after each freeze or thaw: "
            "torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad])."
        )
    for index, group in enumerate(optimizer.param_groups):
        count = len(group["params"])
        if len(group.get("param_names", group["params"])) != count:
            raise ConfigError(
                f"group {index} of the optimizer has {len(group['param_names'])} param_names for "
                f"{count} params, so something else than fl.sync took parts out. Fix or delete "
                "its 'param_names'."
            )
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise ConfigError(
            f"{kind} deals its parameters out to the processes when it is made, so none can join "
            "or leave and each process holds other states. Make a new one after each freeze or "
            "thaw, or use FSDP2 with a plain optimizer."
        )


def warn_of_others(optimizer: Optimizer, joining: Iterable[Entry]) -> None:
    """Warn of what another living optimizer has already, which is looked for among all objects."""
    entries = {id(entry.tensor): entry.name for entry in joining}
    if not entries:
        return
    others = (one for one in gc.get_objects() if issubclass(type(one), Optimizer))
    for other in others:
        groups = vars(other).get("param_groups", ())
        if other is optimizer or groups is optimizer.param_groups:  # or a wrapper around it
            continue
        held = {id(parameter) for group in groups for parameter in group["params"]}
        if names := [name for key, name in entries.items() if key in held]:
            warnings.warn(
                f"{some_of(names, most=3)} joined the {type(optimizer).__name__}, and the "
                f"{type(other).__name__} has it too: each of their steps moves it. To keep them "
                "apart, say who may join: fl.sync(optimizer, model, among=...).",
                stacklevel=4,
            )


def keeper(optimizer: Optimizer) -> Optimizer:
    """The optimizer that keeps the states: this one, or one inside that has the same groups."""
    # timm's Lookahead shares its list of groups with the optimizer it wraps, and has no state.
    inside = (
        value
        for value in vars(optimizer).values()
        if isinstance(value, Optimizer) and value.param_groups is optimizer.param_groups
    )
    return next(inside, optimizer)


def groups_of_model(groups: list[Group], params: ModelParams) -> list[Group]:
    """Those that hold parameters of the model; raises ConfigError if none does."""
    found = [group for group in groups if params.of_group(group)]
    if not found and any(is_distributed(entry.tensor) for entry in params.by_id.values()):
        raise ConfigError(
            f"the optimizer holds no parameter of this {params.title}, whose own were replaced "
            "when it was sharded. Make the optimizer after fully_shard; one made before from "
            "fl.param_groups(model, lr=...) gets the new ones by their names: "
            "fl.sync(optimizer, model)."
        )
    if not found:
        raise ConfigError(
            f"the optimizer holds no parameter of this {params.title}. Pass the very model that "
            "it was made from, no copy; or make the optimizer from "
            "fl.param_groups(model, lr=...)."
        )
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two hyperparameters are equal, be they numbers, tensors, or rows of them."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        if not all(isinstance(value, torch.Tensor | float | int) for value in (one, other)):
            return False
        pair = [torch.as_tensor(v, dtype=torch.float64).cpu().ravel() for v in (one, other)]
        return torch.equal(*pair)
    return bool(one == other)
