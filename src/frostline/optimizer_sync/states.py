"""A parameter's optimizer state: whether it fits, where it is placed, how it begins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.optimizer_sync.members import Group, keeper
from frostline.selectors.inventory import Entry
from frostline.sharding import placed_like

State = dict[str, Any]  # torch's own type for the state of one parameter
# How the shape of a state may follow from its parameter's: the same, or that of a row or column.
_VIEWS: tuple[Callable[[torch.Size], torch.Size], ...] = (
    lambda shape: shape,
    lambda shape: shape[:-1],
    lambda shape: torch.Size((*shape[:-2], *shape[-1:])),
)


def copied(
    value: Any, put: Callable[[Tensor, str], Tensor] = lambda own, _: own, key: str = ""
) -> Any:
    """`value` with every tensor in it detached, cloned and `put` by the key that it stands at."""
    if isinstance(value, Tensor):
        return put(value.detach().clone(), key)
    if isinstance(value, Mapping):
        return {name: copied(inner, put, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        items = [copied(inner, put) for inner in value]
        return items if isinstance(value, list) else tuple(items)
    return copy.deepcopy(value)


def goes_by_shape(optimizer: Optimizer) -> bool:
    """Whether a state's shape tells whose it is: so in torch's own optimizers."""
    # Others keep factors, flattened or selected numbers, and only their own step can tell; torch's
    # fused kernels would read past the end of what is too short.
    return type(keeper(optimizer)).step.__module__.startswith("torch.optim.")


def check_fit(optimizer: Optimizer, entry: Entry, state: Mapping[str, Any]) -> None:
    """Raises ConfigError where a tensor of `state` has a shape that cannot be the parameter's."""
    for key, value in state.items() if goes_by_shape(optimizer) else ():
        if isinstance(value, Tensor) and not _fits(value, entry.tensor):
            raise ConfigError(
                f"the state '{key}' given for {entry.name} has the shape {tuple(value.shape)}, "
                f"but the parameter has {tuple(entry.tensor.shape)}. It is the state of "
                "another parameter: leave it out, and this one begins fresh."
            )


def check_keys(optimizer: Optimizer, entry: Entry, state: Mapping[str, Any], beside: Group) -> None:
    """Raises ConfigError where `state` is of another optimizer than the states of `beside`'s."""
    # Optimizers that are not torch's own, and those around them, may keep other numbers from some
    # step on, or of other shapes: theirs is only refused if it shares no key with that of its like.
    is_matrix = entry.tensor.dim() > 1  # Adafactor keeps other numbers of a vector
    states = keeper(optimizer).state
    others = [p for p in beside["params"] if (p.dim() > 1) == is_matrix]
    known = next((found for p in others if (found := states.get(p))), None)
    if not state or known is None or known.keys() == state.keys():
        return
    is_plain = goes_by_shape(optimizer) and keeper(optimizer) is optimizer
    if is_plain or known.keys().isdisjoint(state):
        raise ConfigError(
            f"the state given for {entry.name} holds {', '.join(state)}, but this "
            f"{type(optimizer).__name__} keeps {', '.join(known)}. It is the state of another "
            "optimizer: leave it out, and the parameter begins fresh."
        )


def outgrown(optimizer: Optimizer, parameter: Tensor, group: Group) -> str | None:
    """The key of a state that was kept for another shape of this parameter; None where all fit."""
    # A parameter gets another shape where its data are replaced, as transformers'
    # `resize_token_embeddings` does. Where shapes do not tell, those of the parameter's like in its
    # group do: what stands in one relation to the shape of each of them is to do so here.
    states = keeper(optimizer).state
    for key, value in states.get(parameter, {}).items():
        if not isinstance(value, Tensor) or _fits(value, parameter):
            continue
        if goes_by_shape(optimizer):
            return str(key)
        like = [p for p in group["params"] if p is not parameter and p.dim() == parameter.dim()]
        others = [(p, states[p][key]) for p in like if key in states.get(p, {})]
        views = [v for v in _VIEWS if all(o.shape == v(p.shape) for p, o in others)]
        if others and views and not any(value.shape == view(parameter.shape) for view in views):
            return str(key)
    return None


def placed(
    state: Mapping[str, Any],
    parameter: Tensor,
    group: Group,
    former: torch.dtype | None,
    *,
    counters: Literal["stay", "go along"] = "stay",
) -> State:
    """A copy of `state` where the parameter's optimizer expects it.

    Tensors of more than one number go to the parameter's device, `step` under fused or capturable
    kernels too, which read it beside the parameter. A dtype stays, as some optimizers keep more
    or fewer bits than the parameter has; only what had the parameter's own (`former`, if known)
    goes along where that has changed. Other single numbers stay, or go along to the device as
    torch's `load_state_dict` has it, since a file may have moved them.
    """

    def put(value: Tensor, key: str) -> Tensor:
        if key == "step":
            is_beside = group.get("fused") or group.get("capturable")
            return value.to(parameter.device, torch.float32) if is_beside else value
        if value.dim() or not parameter.dim():
            dtype = parameter.dtype if value.dtype == former else value.dtype
            if value.shape == parameter.shape:  # one per number: sharded where the parameter is
                value = placed_like(value, parameter)
            return value.to(device=parameter.device, dtype=dtype)
        return value if counters == "stay" else value.to(parameter.device)

    return dict(copied(state, put))


def begun_by_group(optimizer: Optimizer, parameter: Tensor, group: Group) -> State | None:
    """The state that an optimizer makes where a group is added, for a parameter that is in none."""
    # Those that write `add_param_group` anew may make states there, as masks of what is to train,
    # and do not find them missing later.
    if type(optimizer).add_param_group is Optimizer.add_param_group:
        return None
    states, count = keeper(optimizer).state, len(optimizer.param_groups)
    stale = states.pop(parameter, None)
    probe = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    names = {"param_names": [""]} if "param_names" in group else {}
    try:
        optimizer.add_param_group({**probe, **names, "params": [parameter]})
        made: State | None = states.pop(parameter, None)
    finally:
        del optimizer.param_groups[count:]
        if stale is not None:
            states[parameter] = stale
    return made or None


def begun(optimizer: Optimizer, parameter: Tensor, group: Group) -> State | None:
    """The state a parameter begins with; None where the optimizer makes it at the first step."""
    # Adagrad makes its states when it is made; it finds one missing only from some torch on.
    inner = keeper(optimizer)
    if not isinstance(inner, torch.optim.Adagrad):
        return None
    scratch = torch.optim.Adagrad(
        [parameter],
        initial_accumulator_value=inner.defaults["initial_accumulator_value"],
        fused=group["fused"],
    )
    state: State = scratch.state[parameter]
    if any(other["sum"].is_shared() for other in inner.state.values() if "sum" in other):
        state["sum"].share_memory_()
    return state


def even_out(optimizer: Optimizer, group: Group) -> None:
    """Give all of the group a momentum buffer if some have one and the kernel wants all or none."""
    # Fused SGD leaves a parameter without a buffer where it is if others have theirs (torch 2.15).
    # Zeros are what the first step would begin from, but for `dampening`: see `check_even`.
    if not _wants_even(optimizer, group):
        return
    states = keeper(optimizer).state
    without = [p for p in group["params"] if states.get(p, {}).get("momentum_buffer") is None]
    for parameter in without if len(without) < len(group["params"]) else ():
        zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        states[parameter]["momentum_buffer"] = zeros.detach()


def check_even(optimizer: Optimizer, group: Group, states: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError where some of `states` are empty and fused SGD would dampen these too."""
    if not (_wants_even(optimizer, group) and group["dampening"]):
        return
    have = [state.get("momentum_buffer") is not None for state in states]
    if any(have) and not all(have):
        share = 1 - float(group["dampening"])
        raise ConfigError(
            f"fused SGD with dampening={group['dampening']:g} would give parameters that begin "
            f"beside others only {share:g} of their first step. Take the plain kernel, from now "
            "on: for group in optimizer.param_groups: group['fused'] = False."
        )


def _wants_even(optimizer: Optimizer, group: Group) -> bool:
    is_sgd = isinstance(keeper(optimizer), torch.optim.SGD)
    return bool(is_sgd and group.get("fused") and group["momentum"])


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """The parameter's own shape, one number, or a factor that spreads over it (Adafactor's)."""
    return value.dim() == 0 or (
        value.dim() == parameter.dim()
        and all(own in (size, 1) for own, size in zip(value.shape, parameter.shape, strict=True))
    )
