"""All that a `sync` is to do, computed and checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from frostline.errors import ConfigError, FreezeError
from frostline.optimizer_sync.members import Group, Member, Roster, groups_with_members, keeper
from frostline.optimizer_sync.placing import (
    Options,
    Place,
    base_of,
    find,
    has_rate,
    has_rule,
    new_group,
    places,
    same_rule,
    scale_of,
)
from frostline.optimizer_sync.results import Former, Kept, Synced, states_of
from frostline.optimizer_sync.schedules import Change, Scheduler, check_plateaus, check_schedules
from frostline.optimizer_sync.states import (
    State,
    begun,
    begun_by_group,
    check_even,
    check_fit,
    check_keys,
    outgrown,
    placed,
)

# Optimizers that write into states and parameters in `__init__` what their step then reads.
_MADE_ONCE = frozenset({"timm.optim.adahessian.Adahessian"})


@final
@dataclass(frozen=True, slots=True)
class Patient:
    """The optimizer and the model it is to follow."""

    optimizer: torch.optim.Optimizer
    model: nn.Module
    known: Roster

    @property
    def groups(self) -> list[Group]:
        groups: list[Group] = self.optimizer.param_groups
        return groups

    def leavers(self) -> tuple[tuple[Member, int], ...]:
        """Who is to leave, with the index of its group."""
        return tuple(
            (member, index)
            for index, group in enumerate(self.groups)
            for member in self.known.of_group(group)
            if not member.parameter.requires_grad
        )

    def outgrown(self) -> tuple[tuple[Member, Group], ...]:
        """Whose state was kept for another shape, with the group."""
        return tuple(
            (member, group)
            for group in self.groups
            for member in self.known.of_group(group)
            if outgrown(self.optimizer, member.parameter, group) is not None
        )

    def joiners(self) -> tuple[Member, ...]:
        """Who is to join, in the model's order."""
        inside = {id(parameter) for group in self.groups for parameter in group["params"]}
        return tuple(
            member
            for key, member in self.known.members.items()
            if member.parameter.requires_grad and key not in inside
        )


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """What is to be done.

    Attributes:
        leavers: who leaves, with the index of its group.
        joiners: who joins, with the index of its group; it counts through old and new groups.
        states: name -> what a joiner begins with; without one it begins at its first step.
        groups: those to append, still without parameters.
        groups_before: how many there are before.
        changes: what the schedulers are to know of the new groups.
        outgrown: those in the optimizer whose state is of another shape than theirs, with their
            group.
    """

    patient: Patient
    leavers: tuple[tuple[Member, int], ...]
    joiners: tuple[tuple[Member, int], ...]
    states: dict[str, State]
    groups: list[Group]
    groups_before: int
    changes: list[Change]
    outgrown: tuple[tuple[Member, Group], ...]


def prepared(
    patient: Patient, schedulers: Sequence[Scheduler], kept: Kept, options: Options
) -> Operation:
    """Work out who joins, who leaves and what that asks of groups and schedulers.

    Raises: as `sync`.
    """
    groups, known, optimizer = patient.groups, patient.known, patient.optimizer
    _check_trainable(known)
    own = groups_with_members(groups, known)
    rated = [index for index in own if has_rate(groups[index])]
    reference = max(rated, key=lambda index: base_of(groups[index])) if rated else own[0]
    leavers, joiners = patient.leavers(), patient.joiners()
    states = states_of(kept)
    _check_can_begin(optimizer, joiners, states)
    seats, fresh = _seats(patient, own, reference, joiners, _former(kept, options), options)
    new, changes = _new_groups(patient, schedulers, reference, fresh, options)
    seated = tuple(zip(joiners, seats, strict=True))
    formers = kept.formers if isinstance(kept, Synced) else {}
    kin = [*groups, *[groups[reference]] * len(new)]  # of a new group: the one it is made after
    for member, index in seated:
        if member.name in states:
            _check_former(member, formers.get(member.name))
            check_fit(optimizer, member, states[member.name])
            check_keys(optimizer, member, states[member.name], kin[index])
    first = _first_states(optimizer, seated, [*groups, *new], states, formers)
    odd = patient.outgrown()
    _check_first_steps(patient, seated, [*groups, *new], first, odd)
    return Operation(patient, leavers, seated, first, new, len(groups), changes, odd)


def _check_trainable(known: Roster) -> None:
    if not any(member.parameter.requires_grad for member in known.members.values()):
        raise FreezeError(
            f"nothing in {known.title} is trainable, so the optimizer would have nothing to do. "
            "Thaw something before the sync: fl.thaw(model, ...) or fl.train_only(model, ...)."
        )


def _check_former(member: Member, former: Former | None) -> None:
    now = tuple(member.parameter.shape)
    if former is not None and former.shape != now:
        raise ConfigError(
            f"{member.name} left with the shape {former.shape}, but has {now} now, so the kept "
            "state is no longer its own. Leave it out, and the parameter begins fresh."
        )


def _check_first_steps(
    patient: Patient,
    seated: tuple[tuple[Member, int], ...],
    groups: list[Group],
    first: Mapping[str, State],
    odd: tuple[tuple[Member, Group], ...],
) -> None:
    """See to it that who begins in a group gets a whole first step beside those who go on."""
    states = keeper(patient.optimizer).state
    begin = {id(member.parameter) for member, _ in odd}
    for index, group in enumerate(groups):
        stay = [p for p in group["params"] if p.requires_grad]
        found = [{} if id(p) in begin else states.get(p, {}) for p in stay]
        joining = [first.get(member.name, {}) for member, at in seated if at == index]
        if patient.known.of_group(group) or joining:
            check_even(patient.optimizer, group, [*found, *joining])


def _check_can_begin(
    optimizer: torch.optim.Optimizer, joiners: tuple[Member, ...], states: Mapping[str, Any]
) -> None:
    kind = type(keeper(optimizer))
    odd = [member for member in joiners if member.parameter.dim() != 2]
    if odd and issubclass(kind, torch.optim.Muon):
        raise ConfigError(
            f"Muon takes matrices only, but {odd[0].name} has the shape "
            f"{tuple(odd[0].parameter.shape)}. Thaw only matrices and give what else is trainable "
            "to a second optimizer, each with a submodule of its own."
        )
    new = [member for member in joiners if member.name not in states]
    if new and f"{kind.__module__}.{kind.__name__}" in _MADE_ONCE:
        raise ConfigError(
            f"{kind.__name__} prepares its parameters when it is made and takes in none later, as "
            f"{new[0].name}. Make a new one after a thaw."
        )


def _former(kept: Kept, options: Options) -> Mapping[str, int]:
    """Name -> the group it left, where nothing else was said."""
    return kept.groups if isinstance(kept, Synced) and not options else {}


def _seats(
    patient: Patient,
    own: tuple[int, ...],
    reference: int,
    joiners: tuple[Member, ...],
    former: Mapping[str, int],
    options: Options,
) -> tuple[list[int], list[Place]]:
    """The index of each joiner's group, and the places of the groups that are to be made."""
    groups = patient.groups
    model_groups, like = [groups[index] for index in own], groups[reference]
    due = places(patient.model, model_groups, like, options) if joiners else {}
    vacant = [i for i, g in enumerate(groups) if not g["params"] and same_rule(g, like)]
    open_to_all = sorted({*own, *vacant})
    seats: list[int] = []
    fresh: list[Place] = []
    for member in joiners:
        place = due[id(member.parameter)]
        index: int | None = former.get(member.name, -1)
        if index not in open_to_all or has_rule(like):
            index = find(patient.optimizer, open_to_all, like, place)
        if index is None:
            if place not in fresh:
                fresh.append(place)
            index = len(groups) + fresh.index(place)
        seats.append(index)
    return seats, fresh


def _new_groups(
    patient: Patient,
    schedulers: Sequence[Scheduler],
    reference: int,
    fresh: list[Place],
    options: Options,
) -> tuple[list[Group], list[Change]]:
    """The groups to append, and what the schedulers are to know of them."""
    if not fresh:
        return [], []
    like = patient.groups[reference]
    schedules = check_schedules(patient.optimizer, schedulers, reference)
    if "lr" in options:
        check_plateaus(schedulers, like)
    scales = [scale_of(like, place) for place in fresh]
    groups = [
        new_group(like, place, schedules.present_lr(scale))
        for place, scale in zip(fresh, scales, strict=True)
    ]
    return groups, schedules.changes(scales)


def _first_states(
    optimizer: torch.optim.Optimizer,
    seated: tuple[tuple[Member, int], ...],
    groups: list[Group],
    kept: Mapping[str, Mapping[str, Any]],
    formers: Mapping[str, Former],
) -> dict[str, State]:
    found: dict[str, State] = {}
    for member, index in seated:
        if member.name in kept:
            dtype = formers[member.name].dtype if member.name in formers else None
            found[member.name] = placed(kept[member.name], member.parameter, groups[index], dtype)
            continue
        begin = begun(optimizer, member.parameter, groups[index])
        begin = begin or begun_by_group(optimizer, member.parameter, groups[index])
        if begin is not None:
            found[member.name] = begin
    return found
