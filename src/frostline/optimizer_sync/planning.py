"""All that a `sync` is to do, computed and checked before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from frostline.errors import ConfigError, FreezeError
from frostline.optimizer_sync.members import (
    Group,
    ModelParams,
    groups_of_model,
    keeper,
    model_params,
)
from frostline.optimizer_sync.placing import (
    BaseAndDecay,
    Options,
    base_of,
    find_group,
    has_rate,
    has_rule,
    new_group,
    rates_of_trainable,
    scale_of,
)
from frostline.optimizer_sync.results import Kept, Synced, states_of
from frostline.optimizer_sync.schedules import (
    NewValues,
    Scheduler,
    check_plateaus,
    check_schedules,
)
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
from frostline.selectors.inventory import Entry

# Optimizers that write into states and parameters in `__init__` what their step then reads.
_MADE_ONCE = frozenset({"timm.optim.adahessian.Adahessian"})


@final
@dataclass(frozen=True, slots=True)
class Joiner:
    """A parameter that joins the optimizer.

    Attributes:
        index: of its group, counted through old and new ones.
        state: what it begins with; None where the optimizer makes it at the first step.
    """

    entry: Entry
    index: int
    state: State | None


@final
@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be done.

    Attributes:
        leavers: those that leave, each with the index of its group.
        new_groups: those to append, still without parameters.
        scheduler_values: what the schedulers are to know of the new groups.
        outgrown: those in the optimizer whose state is of another shape than theirs, with their
            group.
    """

    params: ModelParams
    leavers: list[tuple[Entry, int]]
    joiners: list[Joiner]
    new_groups: list[Group]
    scheduler_values: list[NewValues]
    outgrown: list[tuple[Entry, Group]]


def planned(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    schedulers: Sequence[Scheduler],
    kept: Kept,
    options: Options,
) -> Changes:
    """Work out which parameters join and leave, and what that asks of groups and schedulers.

    Raises: as `sync`.
    """
    params, groups = model_params(model), optimizer.param_groups
    if not any(entry.tensor.requires_grad for entry in params.by_id.values()):
        raise FreezeError(
            f"nothing in {params.title} is trainable, so the optimizer would have nothing to do. "
            "Thaw something before the sync: fl.thaw(model, ...) or fl.train_only(model, ...)."
        )
    own = groups_of_model(groups, params)
    reference = max(own, key=lambda i: base_of(groups[i]) if has_rate(groups[i]) else -math.inf)
    inside = {id(parameter) for group in groups for parameter in group["params"]}
    joining = [e for key, e in params.by_id.items() if e.tensor.requires_grad and key not in inside]
    _check_can_begin(optimizer, joining, states_of(kept))
    wanted = rates_of_trainable(model, groups, own, reference, options) if joining else {}
    former = kept.groups if isinstance(kept, Synced) and not options else {}
    indices, fresh = _group_indices(optimizer, own, reference, joining, wanted, former)
    new, scheduler_values = _new_groups(optimizer, schedulers, reference, fresh, options)
    joiners = []
    for entry, index in zip(joining, indices, strict=True):
        # For a new group, what the one that it is made after holds is what there is to compare.
        beside = groups[index if index < len(groups) else reference]
        state = _first_state(optimizer, entry, [*groups, *new][index], beside, kept)
        joiners.append(Joiner(entry, index, state))
    held = [(e, index) for index, group in enumerate(groups) for e in params.of_group(group)]
    leavers = [(entry, index) for entry, index in held if not entry.tensor.requires_grad]
    resized = [(e, groups[at]) for e, at in held if outgrown(optimizer, e.tensor, groups[at])]
    changes = Changes(params, leavers, joiners, new, scheduler_values, resized)
    _check_first_steps(optimizer, changes)
    return changes


def _check_can_begin(
    optimizer: torch.optim.Optimizer, joining: list[Entry], states: Mapping[str, Any]
) -> None:
    kind = type(keeper(optimizer))
    odd = [entry for entry in joining if entry.tensor.dim() != 2]
    if odd and issubclass(kind, torch.optim.Muon):
        raise ConfigError(
            f"Muon takes matrices only, but {odd[0].name} has the shape "
            f"{tuple(odd[0].tensor.shape)}. Thaw only matrices and give what else is trainable "
            "to a second optimizer, each with a submodule of its own."
        )
    new = [entry for entry in joining if entry.name not in states]
    if new and f"{kind.__module__}.{kind.__name__}" in _MADE_ONCE:
        raise ConfigError(
            f"{kind.__name__} prepares its parameters when it is made and takes in none later, as "
            f"{new[0].name}. Make a new one after a thaw."
        )


def _group_indices(
    optimizer: torch.optim.Optimizer,
    own: tuple[int, ...],
    reference: int,
    joining: list[Entry],
    wanted: Mapping[int, BaseAndDecay],
    former: Mapping[str, int],
) -> tuple[list[int], list[BaseAndDecay]]:
    """The index of each joiner's group, and what the groups that are to be made are to have.

    Args:
        former: name -> the group that it left, where nothing else was said.
    """
    groups = optimizer.param_groups
    like = groups[reference]
    rule = like.get("rule")
    vacant = [i for i, g in enumerate(groups) if not g["params"] and g.get("rule") == rule]
    candidates = sorted({*own, *vacant})
    indices: list[int] = []
    fresh: list[BaseAndDecay] = []
    for entry in joining:
        due = wanted[id(entry.tensor)]
        index: int | None = former.get(entry.name, -1)
        if index not in candidates or has_rule(like):
            index = find_group(optimizer, candidates, like, due)
        if index is None:
            if due not in fresh:
                fresh.append(due)
            index = len(groups) + fresh.index(due)
        indices.append(index)
    return indices, fresh


def _new_groups(
    optimizer: torch.optim.Optimizer,
    schedulers: Sequence[Scheduler],
    reference: int,
    fresh: list[BaseAndDecay],
    options: Options,
) -> tuple[list[Group], list[NewValues]]:
    """The groups to append, and what the schedulers are to know of them."""
    if not fresh:
        return [], []
    like = optimizer.param_groups[reference]
    schedules = check_schedules(optimizer, schedulers, reference)
    if "lr" in options:
        check_plateaus(schedulers, like)
    scales = [scale_of(like, due) for due in fresh]
    groups = [
        new_group(like, due, schedules.present_lr(scale))
        for due, scale in zip(fresh, scales, strict=True)
    ]
    return groups, schedules.new_values(scales)


def _first_state(
    optimizer: torch.optim.Optimizer, entry: Entry, group: Group, beside: Group, kept: Kept
) -> State | None:
    """What a joiner of `group` begins with; None where the optimizer makes it at the first step."""
    state = states_of(kept).get(entry.name)
    if state is None:
        begin = begun(optimizer, entry.tensor, group)
        return begin or begun_by_group(optimizer, entry.tensor, group)
    former = kept.formers.get(entry.name) if isinstance(kept, Synced) else None
    now = tuple(entry.tensor.shape)
    if former is not None and former.shape != now:
        raise ConfigError(
            f"{entry.name} left with the shape {former.shape}, but has {now} now, so the kept "
            "state is no longer its own. Leave it out, and the parameter begins fresh."
        )
    check_fit(optimizer, entry, state)
    check_keys(optimizer, entry, state, beside)
    return placed(state, entry.tensor, group, former and former.dtype)


def _check_first_steps(optimizer: torch.optim.Optimizer, changes: Changes) -> None:
    """See to it that who begins in a group gets a whole first step beside those who go on."""
    to_be: dict[int, State] = {id(entry.tensor): {} for entry, _ in changes.outgrown}
    to_be |= {id(joiner.entry.tensor): joiner.state or {} for joiner in changes.joiners}
    states = keeper(optimizer).state
    for index, group in enumerate([*optimizer.param_groups, *changes.new_groups]):
        stay = [p for p in group["params"] if p.requires_grad]
        joining = [joiner.entry.tensor for joiner in changes.joiners if joiner.index == index]
        if changes.params.of_group(group) or joining:
            found = [to_be.get(id(p), states.get(p, {})) for p in (*stay, *joining)]
            check_even(optimizer, group, found)
