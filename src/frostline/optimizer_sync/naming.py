"""Optimizer state by parameter name: it finds its parameter whatever the groups and their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NotRequired, TypedDict, final

import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.optimizer_sync.carrying import Common, common_of
from frostline.optimizer_sync.members import (
    Group,
    Member,
    Roster,
    check_optimizer,
    groups_with_members,
    keeper,
    roster,
    same,
)
from frostline.optimizer_sync.states import (
    begun,
    check_even,
    check_fit,
    copied,
    even_out,
    outgrown,
    restored,
)
from frostline.units import some_of

Missing = Literal["refuse", "fresh"]
Hyperparameters = Literal["saved", "own"]

_FORMAT = "frostline optimizer state 2"
_BEFORE = "frostline optimizer state 1"  # knew of parameters' states and groups only
_NOT_SAVED = frozenset({"params", "param_names"})
_some = partial(some_of, most=3)


class NamedParameter(TypedDict):
    """What was saved of one parameter; `group` is an index into the saved groups."""

    shape: list[int]
    dtype: NotRequired[str]
    group: int
    state: dict[str, Any]


class OptimizerState(TypedDict):
    """A whole saved state: plain data and tensors, which `torch.load(weights_only=True)` reads.

    A few optimizers of other libraries keep objects of their own; these are in it as they are.
    `shared` and `further` belong to no single parameter (see `carrying.Common`).
    """

    format: str
    optimizer: str
    parameters: dict[str, NamedParameter]
    groups: list[dict[str, Any]]
    shared: dict[str, Any]
    further: dict[str, Any]


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> OptimizerState:
    """The optimizer's state and hyperparameters of the parameters of `model`, by name.

    Everything in it is a copy: all that the optimizer's own `state_dict()` holds, but for
    parameters of other models in the same optimizer.

    Raises:
        ConfigError: the optimizer keeps no state by parameter, keeps more than names can find
            again, holds nothing of the model, or a state of another shape than its parameter.
    """
    check_optimizer(optimizer)
    known = roster(model)
    own = groups_with_members(optimizer.param_groups, known)
    common, states = common_of(optimizer), keeper(optimizer).state
    parameters: dict[str, NamedParameter] = {}
    for saved_index, index in enumerate(own):
        group = optimizer.param_groups[index]
        for member in known.of_group(group):
            _check_not_outgrown(optimizer, member, group)
            parameters[member.name] = NamedParameter(
                shape=list(member.parameter.shape),
                dtype=str(member.parameter.dtype),
                group=saved_index,
                state=copied(states.get(member.parameter, {})),
            )
    groups = [_hyperparameters(optimizer.param_groups[index]) for index in own]
    return OptimizerState(
        format=_FORMAT,
        optimizer=type(optimizer).__name__,
        parameters=parameters,
        groups=groups,
        shared=common.shared,
        further=common.further,
    )


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    missing: Missing = "refuse",
    hyperparameters: Hyperparameters = "saved",
) -> None:
    """Load what `optimizer_state` gave, by name; training goes on bit for bit.

    Groups may be other in number and order. Tensors are copied and placed as the optimizer's own
    `load_state_dict` does, but keep their bits where the parameter has the dtype it had. Other
    models' parameters in the optimizer keep their state; what it keeps for all is taken over.

    Args:
        missing: "refuse" asks that the saved parameters be those that the optimizer holds of
            the model; with "fresh" one that was not saved begins without state, and what was
            saved of others is left out.
        hyperparameters: those that were saved, or the optimizer's own.

    Raises:
        ConfigError: it is no such state, of another optimizer, of other parameters or shapes,
            its hyperparameters do not fit these groups, or the optimizer's own `load_state_dict`
            refuses it. Nothing has been changed then.
    """
    _check_choices(missing, hyperparameters)
    check_optimizer(optimizer)
    known = roster(model)
    own = groups_with_members(optimizer.param_groups, known)
    saved, common = _checked(state, optimizer), common_of(optimizer)
    found = {
        id(member.parameter): _Found(member, saved["parameters"].get(_saved_name(member, saved)))
        for index in own
        for member in known.of_group(optimizer.param_groups[index])
    }
    if missing == "refuse":
        _check_names(known, found, saved)
    for one in found.values():
        _check_shape(optimizer, one)
    settings = [
        _settings(group, known, found, saved) if hyperparameters == "saved" else {}
        for group in optimizer.param_groups
    ]
    _check_first_steps(optimizer, found, settings)
    if state["format"] == _FORMAT:
        common = Common(copied(saved["shared"]), {**common.further, **copied(saved["further"])})
    _load(optimizer, _by_position(optimizer, found, settings, common))
    _keep_bits(optimizer, found)
    _begin_rest(optimizer, found)


@final
@dataclass(frozen=True, slots=True)
class _Found:
    """A parameter in the optimizer and what was saved of it; None if nothing was."""

    member: Member
    saved: NamedParameter | None

    @property
    def state(self) -> Mapping[str, Any]:
        """The state that was saved; empty if none was."""
        return {} if self.saved is None else self.saved["state"]


def _check_not_outgrown(optimizer: torch.optim.Optimizer, member: Member, group: Group) -> None:
    if (key := outgrown(optimizer, member.parameter, group)) is not None:
        shape = tuple(keeper(optimizer).state[member.parameter][key].shape)
        raise ConfigError(
            f"{member.name} has the shape {tuple(member.parameter.shape)}, but the optimizer keeps "
            f"'{key}' of it with {shape}: its data were resized since. Let it begin again: "
            "fl.sync(optimizer, model)."
        )


def _hyperparameters(group: Group) -> dict[str, Any]:
    return {key: copied(value) for key, value in group.items() if key not in _NOT_SAVED}


def _check_choices(missing: str, hyperparameters: str) -> None:
    for name, value, known in (
        ("missing", missing, ("refuse", "fresh")),
        ("hyperparameters", hyperparameters, ("saved", "own")),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; it is {known[0]!r} or {known[1]!r}.")


def _checked(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> OptimizerState:
    if not isinstance(state, Mapping) or state.get("format") not in (_FORMAT, _BEFORE):
        raise ConfigError(
            "this is no optimizer state by name that this version reads. Pass what "
            "fl.optimizer_state(optimizer, model) gave; what optimizer.state_dict() gave goes to "
            "optimizer.load_state_dict."
        )
    kind = type(optimizer).__name__
    if state["optimizer"] != kind:
        raise ConfigError(
            f"the state was saved from {state['optimizer']}, but this optimizer is {kind}, which "
            "keeps other numbers. Make the optimizer that was saved, or begin without state."
        )
    return OptimizerState(
        format=_FORMAT,
        optimizer=kind,
        parameters=state["parameters"],
        groups=state["groups"],
        shared=state.get("shared", {}),
        further=state.get("further", {}),
    )


def _saved_name(member: Member, saved: OptimizerState) -> str:
    """The name under which it was saved; a tied parameter may have been met elsewhere first."""
    return next((name for name in member.aliases if name in saved["parameters"]), member.name)


def _check_names(known: Roster, found: Mapping[int, _Found], saved: OptimizerState) -> None:
    unknown = [one.member.name for one in found.values() if one.saved is None]
    if unknown:
        raise ConfigError(
            f"the saved state knows nothing of {_some(unknown)} of {known.title}. To let what it "
            'does not know begin without state: fl.load_optimizer_state(..., missing="fresh").'
        )
    held = {name for one in found.values() for name in one.member.aliases}
    absent = [name for name in saved["parameters"] if name not in held]
    if absent:
        raise ConfigError(
            f"the saved state holds {_some(absent)}, which this optimizer does not. Thaw it and "
            "fl.sync(optimizer, model) before loading; or leave it out: "
            'fl.load_optimizer_state(..., missing="fresh").'
        )


def _check_shape(optimizer: torch.optim.Optimizer, one: _Found) -> None:
    if one.saved is None:
        return
    saved, own = tuple(one.saved["shape"]), tuple(one.member.parameter.shape)
    if saved != own:
        raise ConfigError(
            f"{one.member.name} was saved with the shape {saved}, but has {own} in this model. "
            "Load into the model that was trained."
        )
    check_fit(optimizer, one.member, one.saved["state"])


def _check_first_steps(
    optimizer: torch.optim.Optimizer, found: Mapping[int, _Found], settings: list[dict[str, Any]]
) -> None:
    states = keeper(optimizer).state
    for group, chosen in zip(optimizer.param_groups, settings, strict=True):
        to_be: list[Mapping[str, Any]] = []
        for parameter in group["params"]:
            one = found.get(id(parameter))
            kept = states.get(parameter, {}) if one is None else one.state
            to_be.append(kept)
        if any(id(parameter) in found for parameter in group["params"]):
            check_even(optimizer, {**group, **chosen}, to_be)


def _settings(
    group: Group, known: Roster, found: Mapping[int, _Found], saved: OptimizerState
) -> dict[str, Any]:
    """The hyperparameters that were saved for the members of `group`, which must be one set."""
    chosen: dict[str, Any] = {}
    first = ""
    for member in known.of_group(group):
        entry = found[id(member.parameter)].saved
        if entry is None:
            continue
        settings = saved["groups"][entry["group"]]
        if first and (key := _difference(chosen, settings)) is not None:
            raise ConfigError(
                f"{first} and {member.name} stand in one group, but were saved with {key} "
                f"{chosen.get(key)} and {settings.get(key)}. Make the groups as they were, or "
                'keep their own: fl.load_optimizer_state(..., hyperparameters="own").'
            )
        chosen, first = settings, first or member.name
    return {key: copied(value) for key, value in chosen.items()}


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first key whose value differs."""
    keys = dict.fromkeys([*one, *other])
    return next(
        (k for k in keys if k not in one or k not in other or not same(one[k], other[k])), None
    )


def _by_position(
    optimizer: torch.optim.Optimizer,
    found: Mapping[int, _Found],
    settings: list[dict[str, Any]],
    common: Common,
) -> dict[str, Any]:
    """What the optimizer's `load_state_dict` reads: itself as it is to be, by position."""
    present, own = optimizer.state_dict(), keeper(optimizer).state
    states: dict[Any, Any] = dict(common.shared)
    for group, packed in zip(optimizer.param_groups, present["param_groups"], strict=True):
        for parameter, position in zip(group["params"], packed["params"], strict=True):
            one = found.get(id(parameter))
            if state := own.get(parameter) if one is None else copied(one.state):
                states[position] = state
    groups = [
        {**packed, **chosen}
        for packed, chosen in zip(present["param_groups"], settings, strict=True)
    ]
    return {**common.further, "state": states, "param_groups": groups}


def _load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """By the optimizer's own door; if it refuses, it stays as it was.

    torch's `load_state_dict` makes new groups and states, so that the old ones can be put back.
    """
    before = [(one, dict(vars(one))) for one in (optimizer, keeper(optimizer))]
    try:
        optimizer.load_state_dict(state)
    except Exception as error:
        for one, own in before:
            vars(one).clear()
            vars(one).update(own)
        raise ConfigError(
            f"{type(optimizer).__name__}.load_state_dict refuses the saved state: {error}. Make "
            "the optimizer with the options of the one that was saved, or begin without state."
        ) from error


def _keep_bits(optimizer: torch.optim.Optimizer, found: Mapping[int, _Found]) -> None:
    """Undo casts of loading where the parameter has the dtype that it was saved with."""
    states = keeper(optimizer).state
    for one in found.values():
        parameter = one.member.parameter
        if one.state and one.saved and one.saved.get("dtype") == str(parameter.dtype):
            states[parameter] = restored(states[parameter], one.state)


def _begin_rest(optimizer: torch.optim.Optimizer, found: Mapping[int, _Found]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            one = found.get(id(parameter))
            if one is not None and not one.state:
                state = begun(optimizer, parameter, group)
                if state is not None:
                    keeper(optimizer).state[parameter] = state
        if any(id(parameter) in found for parameter in group["params"]):
            even_out(optimizer, group)
