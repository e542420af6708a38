"""`fl.sync`: after a freeze or thaw, the optimizer holds exactly what is trainable.

All that is to be done is computed and checked before anything is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import ConfigError, FreezeError
from frostline.freezing.modes import held_though_trainable
from frostline.optimizer_sync import members, schedules, states
from frostline.optimizer_sync.members import Group, keeper
from frostline.optimizer_sync.placing import (
    BaseAndDecay,
    Options,
    due_rates,
    fits,
    has_rule,
    highest,
)
from frostline.optimizer_sync.renewing import renew
from frostline.optimizer_sync.results import Former, Kept, Synced, as_synced
from frostline.optimizer_sync.schedules import NewValues, Scheduler
from frostline.optimizer_sync.states import State
from frostline.selectors import Entry, SelectorLike, select
from frostline.units import some_of
from frostline.wrappers import check_is_model, strays

# Optimizers that write into states and parameters in `__init__` what their step then reads.
_MADE_ONCE = frozenset({"timm.optim.adahessian.Adahessian"})


def sync(
    optimizer: Optimizer,
    model: nn.Module,
    *,
    schedulers: Sequence[Scheduler] = (),
    kept: Kept = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    lr_mult: Mapping[str, float] | None = None,
    no_decay: SelectorLike | None = None,
    among: SelectorLike | None = None,
) -> Synced:
    """Let thawed parameters of `model` join the optimizer, and frozen ones leave it.

    Parameters are told apart by identity. Who leaves takes its state along and loses its
    gradient; who stays keeps its group, its state and, bit for bit, its learning rate; another
    model's parameters are left alone. Who joins goes to a group with the rate and decay due to
    it, if need be to a new one at the end, and begins without state unless `kept` has one. A new
    group follows every scheduler as if it had been there from the first step. Groups that become
    empty stay, so that indices hold.

    What is due follows the rule of `fl.param_groups` if the optimizer was made from it, with
    the options in its stead where given. Without a rule or options it is the group that `kept`
    says it left; else, and for what the options leave open, the highest learning rate there is,
    and no decay on biases and norms if the groups are split so.
    After `fully_shard`, which puts others in the places of a model's parameters, one that holds
    the former ones gets the new by their `param_names`, with their states sharded.
    With several optimizers over one model, sync each with the part that it trains, by `among`.
    State of another shape than its parameter has now, as after a resize of embeddings, is
    dropped. `Synced` names these, and modules that are held though something unfroze them.

    Args:
        schedulers: all learning rate schedulers of this optimizer.
        kept: what an earlier `sync` returned, or name -> state (`{**a.states, **b.states}`).
        lr, weight_decay, layer_decay, lr_mult, no_decay: as in `fl.param_groups`, for the
            joiners of this call; `lr` is the rate before any schedule (`max_lr` of OneCycleLR).
        among: who may join; by default all of the model, with a warning of what another optimizer
            has already, as both would step it.

    Raises:
        FreezeError: nothing in the model is trainable, or what trains is not what a living
            DistributedDataParallel around the model averages.
        ConfigError: `model` is no module; the optimizer holds nothing of it, cannot take or lose
            parameters, or would not give a joiner its whole first step; a scheduler cannot take
            in a new group, or does not show where a rate stands; or a kept state does not fit.
            Nothing has been changed then.
        SelectorError: a selector cannot be read or matches nothing.

    Example:
        >>> optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3))
        >>> fl.thaw(model, "backbone.0")
        >>> print(fl.sync(optimizer, model))
        2 parameters (backbone.0.weight, backbone.0.bias) joined, nothing left
    """
    members.check_optimizer(optimizer)
    check_is_model(model)
    schedules.check_schedulers(optimizer, schedulers)
    if names := strays(model):
        raise FreezeError(
            "the DistributedDataParallel around the model was made before "
            f"{some_of(names, most=3)} was frozen or thawed: each process would train a model of "
            "its own, or wait for ever. Wrap the inner model anew, then sync."
        )
    said = {
        "lr": lr,
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "lr_mult": lr_mult,
        "no_decay": no_decay,
    }
    options = cast("Options", {key: value for key, value in said.items() if value is not None})
    renew(optimizer, members.model_params(model))
    may_join = None if among is None else {id(e.tensor) for e in select(model, among).entries}
    changes = _planned(optimizer, model, schedulers, as_synced(kept), options, may_join)
    return _made(optimizer, changes, model)


@final
@dataclass(frozen=True, slots=True)
class _Changes:
    """What is to be done."""

    params: members.ModelParams
    leavers: list[tuple[Entry, int]]  # each with the index of its group
    joiners: list[tuple[Entry, Group]]  # the group is a new one, or was there before
    new_groups: list[Group]  # to append, filled
    scheduler_values: list[NewValues]  # what the schedulers are to know of the new groups
    outgrown: list[Entry]  # those in the optimizer whose state is of another shape than theirs
    # What joiners and outgrown begin with; None where the optimizer makes it at the first step.
    first_states: dict[Tensor, State | None]


def _planned(
    optimizer: Optimizer,
    model: nn.Module,
    schedulers: Sequence[Scheduler],
    kept: Synced,
    options: Options,
    may_join: set[int] | None,
) -> _Changes:
    """Work out who joins and leaves, and what that asks of groups, states and schedulers."""
    # Long since all is found before anything is changed: what is refused leaves all as it was.
    params, groups = members.model_params(model), optimizer.param_groups
    if not any(entry.tensor.requires_grad for entry in params.by_id.values()):
        raise FreezeError(
            f"nothing in {params.title} is trainable, so the optimizer would have nothing to do. "
            "Thaw something before the sync: fl.thaw(model, ...) or fl.train_only(model, ...)."
        )
    own = members.groups_of_model(groups, params)
    inside = {id(parameter) for group in groups for parameter in group["params"]}
    joining = [e for key, e in params.by_id.items() if e.tensor.requires_grad and key not in inside]
    if may_join is None:
        members.warn_of_others(optimizer, joining)
    else:
        joining = [entry for entry in joining if id(entry.tensor) in may_join]
    _check_can_begin(optimizer, joining, kept.states)
    due = due_rates(model, own, options) if joining else {}
    found = _groups_found(optimizer, own, joining, due, {} if options else kept.groups)
    fresh = list(dict.fromkeys(due[key] for key, group in found.items() if group is None))
    new, scheduler_values = schedules.new_groups(
        optimizer, schedulers, highest(own), fresh, options
    )
    joiners: list[tuple[Entry, Group]] = []
    first_states: dict[Tensor, State | None] = {}
    for entry in joining:
        there = found[id(entry.tensor)]
        group = there or new[fresh.index(due[id(entry.tensor)])]
        # For a new group, what the one that it is made after holds is what there is to compare.
        beside = there or highest(own)
        first_states[entry.tensor] = _first_state(optimizer, entry, group, beside, kept)
        joiners.append((entry, group))
        if there is None:
            _join(group, entry)
    held = [(e, index) for index, group in enumerate(groups) for e in params.of_group(group)]
    leavers = [(entry, index) for entry, index in held if not entry.tensor.requires_grad]
    dropped: list[Entry] = []
    for entry, index in held:
        if states.outgrown(optimizer, entry.tensor, groups[index]):
            first_states[entry.tensor] = states.begun(optimizer, entry.tensor, groups[index])
            dropped.append(entry)
    changes = _Changes(params, leavers, joiners, new, scheduler_values, dropped, first_states)
    _check_first_steps(optimizer, changes)
    return changes


def _check_can_begin(optimizer: Optimizer, joining: list[Entry], kept: Mapping[str, Any]) -> None:
    kind = type(keeper(optimizer))
    odd = [entry for entry in joining if entry.tensor.dim() != 2]
    if odd and issubclass(kind, torch.optim.Muon):
        raise ConfigError(
            f"Muon takes matrices only, but {odd[0].name} has the shape "
            f"{tuple(odd[0].tensor.shape)}. Give what else is trainable to a second optimizer, and "
            "say who may join here: fl.sync(optimizer, model, among=lambda name, p, module: "
            "p.ndim == 2)."
        )
    new = [entry for entry in joining if entry.name not in kept]
    if new and f"{kind.__module__}.{kind.__name__}" in _MADE_ONCE:
        raise ConfigError(
            f"{kind.__name__} prepares its parameters when it is made and takes in none later, as "
            f"{new[0].name}. Make a new one after a thaw."
        )


def _groups_found(
    optimizer: Optimizer,
    own: list[Group],
    joining: list[Entry],
    due: Mapping[int, BaseAndDecay],
    former: Mapping[str, int],
) -> dict[int, Group | None]:
    """The group of each joiner, by `id()`: its former one, or one that fits; None if neither."""
    like, groups = highest(own), optimizer.param_groups
    vacant = (g for g in groups if not g["params"] and g.get("rule") == like.get("rule"))
    its = {id(group) for group in (*own, *vacant)}
    candidates = {index: group for index, group in enumerate(groups) if id(group) in its}
    found: dict[int, Group | None] = {}
    for entry in joining:
        left = None if has_rule(like) else candidates.get(former.get(entry.name, -1))
        wanted = due[id(entry.tensor)]
        fitting = (g for g in candidates.values() if fits(g, wanted, like, optimizer.defaults))
        found[id(entry.tensor)] = left or next(fitting, None)
    return found


def _first_state(
    optimizer: Optimizer, entry: Entry, group: Group, beside: Group, kept: Synced
) -> State | None:
    """What a joiner of `group` begins with; None where the optimizer makes it at the first step."""
    state, former = kept.states.get(entry.name), kept.formers.get(entry.name)
    if state is None:
        begin = states.begun(optimizer, entry.tensor, group)
        return begin or states.begun_by_group(optimizer, entry.tensor, group)
    now = tuple(entry.tensor.shape)
    if former is not None and former.shape != now:
        raise ConfigError(
            f"{entry.name} left with the shape {former.shape}, but has {now} now, so the kept "
            "state is no longer its own. Leave it out, and the parameter begins fresh."
        )
    states.check_fit(optimizer, entry, state)
    states.check_keys(optimizer, entry, state, beside)
    return states.placed(state, entry.tensor, group, former and former.dtype)


def _check_first_steps(optimizer: Optimizer, changes: _Changes) -> None:
    """See to it that who begins in a group gets a whole first step beside those who go on."""
    known = {**keeper(optimizer).state, **changes.first_states}
    for group in (*optimizer.param_groups, *changes.new_groups):
        joining = [entry.tensor for entry, its in changes.joiners if its is group]
        if changes.params.of_group(group) or joining:
            stay = [p for p in group["params"] if p.requires_grad]
            due = {id(p): known.get(p) or {} for p in (*stay, *joining)}
            states.check_even(optimizer, group, list(due.values()))


def _made(optimizer: Optimizer, changes: _Changes, model: nn.Module) -> Synced:
    """Make the changes."""
    before = list(optimizer.param_groups)
    try:
        for group in changes.new_groups:
            optimizer.add_param_group(group)
    except Exception:
        optimizer.param_groups[:] = before  # none stays if it refuses one
        raise
    for scheduler, values in changes.scheduler_values:
        vars(scheduler).update(values)
    for entry in changes.outgrown:
        gradient = entry.tensor.grad
        if gradient is not None and gradient.shape != entry.tensor.shape:
            entry.tensor.grad = None
    known = keeper(optimizer).state
    for parameter, state in changes.first_states.items():
        known.pop(parameter, None)
        if state is not None:
            known[parameter] = state
    left, formers = _let_go(optimizer, changes)
    for entry, group in changes.joiners:
        if any(group is one for one in before):
            _join(group, entry)
    for group in optimizer.param_groups:
        if changes.params.of_group(group):
            states.even_out(optimizer, group)
    return Synced(
        joined=tuple(entry.name for entry, _ in changes.joiners),
        left=tuple(entry.name for entry, _ in changes.leavers),
        states=left,
        groups={entry.name: index for entry, index in changes.leavers},
        groups_added=len(changes.new_groups),
        dropped=tuple(entry.name for entry in changes.outgrown),
        held=tuple(path or "the model" for path, _ in held_though_trainable(model)),
        formers=formers,
    )


def _let_go(optimizer: Optimizer, changes: _Changes) -> tuple[dict[str, State], dict[str, Former]]:
    """Take out what leaves, and the gradient and state of all that is frozen; gives the states."""
    gone = {id(entry.tensor) for entry, _ in changes.leavers}
    for group in (optimizer.param_groups[at] for at in {at for _, at in changes.leavers}):
        stays = [id(parameter) not in gone for parameter in group["params"]]
        for key in group.keys() & {"params", "param_names"}:  # the lists stay the same objects
            group[key][:] = [thing for thing, stay in zip(group[key], stays, strict=True) if stay]
    gone_states: dict[str, State] = {}
    formers: dict[str, Former] = {}
    for entry in changes.params.by_id.values():
        parameter = entry.tensor
        if not parameter.requires_grad:
            parameter.grad = None
            if state := keeper(optimizer).state.pop(parameter, None):
                gone_states[entry.name] = state
                formers[entry.name] = Former(tuple(parameter.shape), parameter.dtype)
    return gone_states, formers


def _join(group: Group, entry: Entry) -> None:
    group["params"].append(entry.tensor)
    if "param_names" in group:
        group["param_names"].append(entry.name)
