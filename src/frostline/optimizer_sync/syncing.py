"""`fl.sync`: after a freeze or thaw, the optimizer holds exactly what is trainable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from frostline.errors import FreezeError
from frostline.freezing.modes import held_though_trainable
from frostline.optimizer_sync.members import Group, check_optimizer, keeper
from frostline.optimizer_sync.placing import Options
from frostline.optimizer_sync.planning import Changes, Joiner, planned
from frostline.optimizer_sync.results import Former, Kept, Synced
from frostline.optimizer_sync.schedules import Scheduler, check_schedulers
from frostline.optimizer_sync.states import State, begun, even_out
from frostline.selectors import SelectorLike
from frostline.units import some_of
from frostline.wrappers import strays


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
    changes = planned(optimizer, model, schedulers, kept, options)
    _append(optimizer, changes)
    for scheduler, values in changes.scheduler_values:
        vars(scheduler).update(values)
    _drop_outgrown(optimizer, changes)
    states, formers = _let_go(optimizer, changes)
    _take_in(optimizer, changes)
    return Synced(
        joined=tuple(joiner.entry.name for joiner in changes.joiners),
        left=tuple(entry.name for entry, _ in changes.leavers),
        states=states,
        groups={entry.name: index for entry, index in changes.leavers},
        groups_added=len(changes.new_groups),
        dropped=tuple(entry.name for entry, _ in changes.outgrown),
        held=tuple(path or "the model" for path, _ in held_though_trainable(model)),
        formers=formers,
    )


def _append(optimizer: torch.optim.Optimizer, changes: Changes) -> None:
    """Add the new groups, filled, by `add_param_group`; none stays if it refuses one."""
    before = len(optimizer.param_groups)
    for joiner in changes.joiners:
        if joiner.index >= before:
            _join(changes.new_groups[joiner.index - before], joiner)
    try:
        for group in changes.new_groups:
            optimizer.add_param_group(group)
    except Exception:
        del optimizer.param_groups[before:]
        raise


def _drop_outgrown(optimizer: torch.optim.Optimizer, changes: Changes) -> None:
    """Forget states, and gradients, of a shape that the parameter no longer has."""
    states = keeper(optimizer).state
    for entry, group in changes.outgrown:
        parameter = entry.tensor
        del states[parameter]
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            parameter.grad = None
        if (state := begun(optimizer, parameter, group)) is not None:
            states[parameter] = state


def _let_go(
    optimizer: torch.optim.Optimizer, changes: Changes
) -> tuple[dict[str, State], dict[str, Former]]:
    """Take out what leaves, and the gradient and state of all that is frozen; gives the states."""
    gone = {id(entry.tensor) for entry, _ in changes.leavers}
    for index in {index for _, index in changes.leavers}:
        group = optimizer.param_groups[index]
        stays = [id(parameter) not in gone for parameter in group["params"]]
        for key in group.keys() & {"params", "param_names"}:  # the lists stay the same objects
            group[key][:] = [thing for thing, stay in zip(group[key], stays, strict=True) if stay]
    states: dict[str, State] = {}
    formers: dict[str, Former] = {}
    for entry in changes.params.by_id.values():
        parameter = entry.tensor
        if not parameter.requires_grad:
            parameter.grad = None
            if state := keeper(optimizer).state.pop(parameter, None):
                states[entry.name] = state
                formers[entry.name] = Former(tuple(parameter.shape), parameter.dtype)
    return states, formers


def _take_in(optimizer: torch.optim.Optimizer, changes: Changes) -> None:
    """Put the joiners into the groups that there were, and give all joiners their state."""
    states = keeper(optimizer).state
    before = len(optimizer.param_groups) - len(changes.new_groups)
    for joiner in changes.joiners:
        if joiner.index < before:
            _join(optimizer.param_groups[joiner.index], joiner)
        states.pop(joiner.entry.tensor, None)
        if joiner.state is not None:
            states[joiner.entry.tensor] = joiner.state
    for group in optimizer.param_groups:
        if changes.params.of_group(group):
            even_out(optimizer, group)


def _join(group: Group, joiner: Joiner) -> None:
    group["params"].append(joiner.entry.tensor)
    if "param_names" in group:
        group["param_names"].append(joiner.entry.name)
