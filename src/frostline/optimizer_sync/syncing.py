"""`fl.sync`: after a freeze or thaw, the optimizer holds exactly what is trainable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from frostline.errors import FreezeError
from frostline.modes import held_though_trainable
from frostline.optimizer_sync.members import check_optimizer, keeper, roster
from frostline.optimizer_sync.placing import Options, close_up, join
from frostline.optimizer_sync.planning import Operation, Patient, prepared
from frostline.optimizer_sync.results import Former, Kept, Synced
from frostline.optimizer_sync.schedules import Scheduler, check_schedulers
from frostline.optimizer_sync.states import State, begun, even_out
from frostline.selectors import SelectorLike
from frostline.wrapped import strays


def sync(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    schedulers: Sequence[Scheduler] = (),
    kept: Kept = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    lr_mult: Mapping[str, float] | None = None,
    no_decay: SelectorLike | None = None,
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
    With several optimizers over one model, sync each with the submodule that it trains.
    State of another shape than its parameter has now, as after a resize of embeddings, is
    dropped. `Synced` names these, and modules that are held though something unfroze them.

    Args:
        schedulers: all learning rate schedulers of this optimizer.
        kept: what an earlier `sync` returned, or name -> state (`{**a.states, **b.states}`).
        lr, weight_decay, layer_decay, lr_mult, no_decay: as in `fl.param_groups`, for the
            joiners of this call; `lr` is the rate before any schedule (`max_lr` of OneCycleLR).

    Raises:
        FreezeError: nothing in the model is trainable, or what trains is not what a living
            DistributedDataParallel around the model averages.
        ConfigError: the optimizer holds nothing of the model, cannot take or lose parameters, or
            would not give a joiner its whole first step; a scheduler cannot take in a new group,
            or does not show where a rate stands; or a kept state does not fit. Nothing has been
            changed then.
        SelectorError: a selector cannot be read or matches nothing.
    """
    check_optimizer(optimizer)
    check_schedulers(optimizer, schedulers)
    if names := strays(model):
        raise FreezeError(
            "the DistributedDataParallel around the model was made before "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} was frozen or thawed: each "
            "process would train a model of its own, or wait for ever. Wrap the inner model anew, "
            "then sync."
        )
    said = {
        "lr": lr,
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "lr_mult": lr_mult,
        "no_decay": no_decay,
    }
    options = cast("Options", {key: value for key, value in said.items() if value is not None})
    patient = Patient(optimizer, model, roster(model))
    return _operate(prepared(patient, schedulers, kept, options))


def _operate(operation: Operation) -> Synced:
    _append(operation)
    for change in operation.changes:
        change.apply()
    _drop_outgrown(operation)
    states = _let_go(operation)
    _take_in(operation)
    return Synced(
        tuple(member.name for member, _ in operation.joiners),
        tuple(member.name for member, _ in operation.leavers),
        states,
        {member.name: index for member, index in operation.leavers},
        len(operation.groups),
        tuple(member.name for member, _ in operation.outgrown),
        tuple(path or "the model" for path, _ in held_though_trainable(operation.patient.model)),
        _formers(operation, states),
    )


def _append(operation: Operation) -> None:
    """Add the new groups, filled, by torch's own door; none stays if it refuses one."""
    optimizer, before = operation.patient.optimizer, operation.groups_before
    for member, index in operation.joiners:
        if index >= before:
            join(operation.groups[index - before], member)
    try:
        for group in operation.groups:
            optimizer.add_param_group(group)
    except Exception:
        del optimizer.param_groups[before:]
        raise


def _drop_outgrown(operation: Operation) -> None:
    """Forget states, and gradients, of a shape that the parameter no longer has."""
    optimizer = operation.patient.optimizer
    for member, group in operation.outgrown:
        parameter = member.parameter
        del keeper(optimizer).state[parameter]
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            parameter.grad = None
        if (state := begun(optimizer, parameter, group)) is not None:
            keeper(optimizer).state[parameter] = state


def _formers(operation: Operation, states: Mapping[str, State]) -> dict[str, Former]:
    return {
        member.name: Former(tuple(member.parameter.shape), member.parameter.dtype)
        for member in operation.patient.known.members.values()
        if member.name in states
    }


def _let_go(operation: Operation) -> dict[str, State]:
    """Take out who leaves, and the gradient and state of all that is frozen; gives the states."""
    optimizer = operation.patient.optimizer
    gone = {id(member.parameter) for member, _ in operation.leavers}
    for index in {index for _, index in operation.leavers}:
        close_up(optimizer.param_groups[index], gone)
    states: dict[str, State] = {}
    for member in operation.patient.known.members.values():
        if not member.parameter.requires_grad:
            member.parameter.grad = None
            if state := keeper(optimizer).state.pop(member.parameter, None):
                states[member.name] = state
    return states


def _take_in(operation: Operation) -> None:
    """Put the joiners into the groups that there were, and give all joiners their state."""
    optimizer = operation.patient.optimizer
    states = keeper(optimizer).state
    for member, index in operation.joiners:
        if index < operation.groups_before:
            join(optimizer.param_groups[index], member)
        states.pop(member.parameter, None)
        if member.name in operation.states:
            states[member.parameter] = operation.states[member.name]
    for group in optimizer.param_groups:
        if operation.patient.known.of_group(group):
            even_out(optimizer, group)
