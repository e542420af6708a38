"""Parameters that `fully_shard` replaced by others: an optimizer gets them back by their names.

It is made best after sharding. One that was made before holds tensors which nobody computes with
any more; where its groups name them (`param_names`, as `fl.param_groups` does), it gets those that
stand in the model now, and their states sharded likewise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.optimizer_sync.members import Group, ModelParams, keeper
from frostline.selectors import Entry
from frostline.sharding import is_distributed, placed_like
from frostline.units import some_of


def renew(optimizer: Optimizer, params: ModelParams) -> None:
    """Put the model's sharded parameters in the places of those whose names they bear.

    Raises:
        ConfigError: the optimizer holds two under one name, or one of another shape; nothing has
            been changed then.
    """
    found = list(_replaced(optimizer, params))
    counts = Counter(entry.name for _, _, entry in found)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(
            f"the optimizer holds several parameters under the name {some_of(twice, most=3)}, so "
            f"which of them this {params.title} had before it was sharded is not known. Make the "
            "optimizer after fully_shard."
        )
    states = keeper(optimizer).state
    for group, index, entry in found:
        old, new = group["params"][index], entry.tensor
        group["params"][index] = new
        if old in states:
            states[new] = {
                key: placed_like(value, new) if _is_per_number(value, new) else value
                for key, value in states.pop(old).items()
            }


def _replaced(optimizer: Optimizer, params: ModelParams) -> Iterator[tuple[Group, int, Entry]]:
    """Where the optimizer holds a tensor that is in the model no more, and what is there now."""
    sharded = {
        name: entry
        for entry in params.by_id.values()
        if is_distributed(entry.tensor)
        for name in entry.names
    }
    for group in optimizer.param_groups if sharded else ():
        for index, name in enumerate(group.get("param_names", ())):
            parameter, entry = group["params"][index], sharded.get(name)
            if entry is None or id(parameter) in params.by_id or is_distributed(parameter):
                continue
            if parameter.shape != entry.tensor.shape:
                raise ConfigError(
                    f"the optimizer holds {name} with the shape {tuple(parameter.shape)}, and "
                    f"{params.title} has {tuple(entry.tensor.shape)}. Make the optimizer after "
                    "fully_shard."
                )
            yield group, index, entry


def _is_per_number(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and bool(value.dim()) and value.shape == parameter.shape
