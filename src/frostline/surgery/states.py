"""A parameter's optimizer state: whether it fits, where it is placed, how it begins."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.surgery.members import Group, Member

State = dict[str, Any]  # torch's own type for the state of one parameter


def copied(value: Any) -> Any:
    """`value` with every tensor in it detached and cloned."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        items = [copied(inner) for inner in value]
        return items if isinstance(value, list) else tuple(items)
    return copy.deepcopy(value)


def check_fit(member: Member, state: Mapping[str, Any]) -> None:
    """Make sure that the tensors of `state` are of a shape that belongs to the parameter.

    Raises:
        ConfigError: one is not; names the parameter.
    """
    for key, value in state.items():
        if isinstance(value, Tensor) and not _fits(value, member.parameter):
            raise ConfigError(
                f"the state '{key}' given for {member.name} has the shape {tuple(value.shape)}, "
                f"but the parameter has {tuple(member.parameter.shape)}. It is the state of "
                "another parameter: leave it out, and this one begins fresh."
            )


def check_keys(
    optimizer: torch.optim.Optimizer, member: Member, state: Mapping[str, Any], beside: Group
) -> None:
    """Make sure that `state` holds what the optimizer keeps for those that stand in `beside`.

    Raises:
        ConfigError: it does not, as a state of Adam given to SGD; names the parameter.
    """
    is_matrix = member.parameter.dim() > 1  # Adafactor keeps other numbers of a vector
    others = [p for p in beside["params"] if (p.dim() > 1) == is_matrix]
    known = next((found for p in others if (found := optimizer.state.get(p))), None)
    if state and known is not None and known.keys() != state.keys():
        raise ConfigError(
            f"the state given for {member.name} holds {', '.join(state)}, but this "
            f"{type(optimizer).__name__} keeps {', '.join(known)}. It is the state of another "
            "optimizer: leave it out, and the parameter begins fresh."
        )


def placed(state: Mapping[str, Any], parameter: nn.Parameter, group: Group) -> State:
    """A copy of `state` where the parameter's optimizer expects it.

    Tensors of more than one number go to the parameter's device and dtype; counters stay as they
    are, but for `step` under fused or capturable kernels, which read it beside the parameter.
    """
    found: State = copied(state)
    for key, value in found.items():
        if not isinstance(value, Tensor):
            continue
        if key == "step":
            if group.get("fused") or group.get("capturable"):
                found[key] = value.to(device=parameter.device, dtype=torch.float32)
        elif value.dim() or not parameter.dim():
            dtype = parameter.dtype if value.is_floating_point() else value.dtype
            found[key] = value.to(device=parameter.device, dtype=dtype)
    return found


def begun(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, group: Group) -> State | None:
    """The state a parameter begins with; None where the optimizer makes it at the first step.

    Adagrad makes its states when it is made; it finds one missing only from some torch on.
    """
    if not isinstance(optimizer, torch.optim.Adagrad):
        return None
    scratch = torch.optim.Adagrad(
        [parameter],
        initial_accumulator_value=optimizer.defaults["initial_accumulator_value"],
        fused=group["fused"],
    )
    state: State = scratch.state[parameter]
    if any(other["sum"].is_shared() for other in optimizer.state.values() if "sum" in other):
        state["sum"].share_memory_()
    return state


def even_out(optimizer: torch.optim.Optimizer, group: Group) -> None:
    """Give all of the group a momentum buffer where some have one and the kernel wants all or none.

    Fused SGD leaves a parameter without a buffer where it is if others have theirs (torch 2.15).
    Zeros are what the first step would begin from, but for `dampening`.
    """
    if not (isinstance(optimizer, torch.optim.SGD) and group.get("fused") and group["momentum"]):
        return
    buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in group["params"]]
    if all(buffer is None for buffer in buffers):
        return
    for parameter, buffer in zip(group["params"], buffers, strict=True):
        if buffer is None:
            zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            optimizer.state[parameter]["momentum_buffer"] = zeros.detach()


def _fits(value: Tensor, parameter: nn.Parameter) -> bool:
    """The parameter's own shape, one number, or a factor that spreads over it (Adafactor's)."""
    return value.dim() == 0 or (
        value.dim() == parameter.dim()
        and all(own in (size, 1) for own, size in zip(value.shape, parameter.shape, strict=True))
    )
