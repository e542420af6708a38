"""What an optimizer keeps beside its single parameters' states: carried along whole, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from frostline.errors import ConfigError
from frostline.optimizer_sync.members import keeper
from frostline.optimizer_sync.states import copied

_OWN_WAY = (
    "so none of it has a parameter's name. Save optimizer.state_dict() and load it into an "
    "optimizer made the same way; or save the state of the optimizer inside."
)


@final
@dataclass(frozen=True, slots=True)
class Common:
    """What belongs to no single parameter: counters, a schedule of its own, random generators.

    Attributes:
        shared: entries of the optimizer's state under a name instead of a parameter.
        further: entries of its `state_dict()` beside state and groups.
    """

    shared: dict[str, Any]
    further: dict[str, Any]


def common_of(optimizer: torch.optim.Optimizer) -> Common:
    """A copy of what the optimizer's own `state_dict()` holds beside parameters' states and groups.

    Raises:
        ConfigError: its `state_dict()` has another form, keeps parameters' states elsewhere, or
            something in it goes by the parameters' positions, which a name cannot find again.
    """
    packed = optimizer.state_dict()
    positions = _positions(optimizer, packed)
    states = keeper(optimizer).state
    if any(packed["state"].get(at) and not states.get(p) for at, p in positions.items()):
        raise _refused(optimizer, "keeps its parameters' states in another object")
    shared = {key: value for key, value in packed["state"].items() if key not in positions}
    further = {key: v for key, v in packed.items() if key not in ("state", "param_groups")}
    for key, value in {**shared, **further}.items():
        if not isinstance(key, str) or _goes_by_position(value):
            raise _refused(optimizer, f"keeps '{key}' by the positions of its parameters")
    return Common(copied(shared), copied(further))


def _positions(
    optimizer: torch.optim.Optimizer, packed: Mapping[str, Any]
) -> dict[Any, torch.nn.Parameter]:
    """What stands for each parameter in what torch's `load_state_dict` reads."""
    groups = packed.get("param_groups")
    if "state" not in packed or groups is None or len(groups) != len(optimizer.param_groups):
        raise _refused(optimizer, f"saves itself in a form of its own ({', '.join(packed)})")
    pairs = zip(groups, optimizer.param_groups, strict=True)
    return {
        at: parameter
        for packed_group, group in pairs
        for at, parameter in zip(packed_group["params"], group["params"], strict=True)
    }


def _goes_by_position(value: Any) -> bool:
    """Whether a mapping in it has other keys than names, as positions or parameters."""
    if isinstance(value, Mapping):
        named = all(isinstance(key, str) for key in value)
        return not named or any(_goes_by_position(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_goes_by_position(inner) for inner in value)
    return isinstance(value, torch.nn.Parameter)


def _refused(optimizer: torch.optim.Optimizer, why: str) -> ConfigError:
    return ConfigError(f"{type(optimizer).__name__} {why}, {_OWN_WAY}")
