"""Whether the optimizer holds exactly what is trainable, at a rate that can work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frostline.checkup.findings import Finding, counted, enumerated, error, listed, note, warning
from frostline.checkup.subject import Subject, check
from frostline.groups import default_lr
from frostline.optimizer_sync import has_rate, outgrown
from frostline.wording import either

# Usual are 1e-5 to 1e-2 for heads and 1e-6 to 3e-4 for pretrained layers with Adam and the like;
# a linear probe on fixed features bears up to 30 with SGD (He et al. 2020, MoCo). The limits lie
# well outside of these, as a doctor that warns of what works is not listened to.
_ADAMS = ("adam", "lamb", "lion", "adafactor", "rmsprop", "adagrad", "adan", "adabelief")
_LEAST = {"AdamW": 1e-6, "SGD": 1e-5}
_MOST = {
    "AdamW": {"the head": 0.1, "pretrained layers": 1e-3, "the whole model": 1e-2},
    "SGD": {"the head": 30.0, "pretrained layers": 0.1, "the whole model": 1.0},
}


@check("other-model")
def other_model(subject: Subject) -> Iterator[Finding]:
    if subject.optimizers and not subject.held and subject.trainable:
        yield error(
            f"the optimizer holds no parameter of this {type(subject.root).__name__}",
            "it was made from another model, a copy, or before parameters were replaced: it would "
            "step, and this model would never move",
            _new_optimizer(subject, "AdamW"),
        )


@check("not-in-optimizer")
def not_in_optimizer(subject: Subject) -> Iterator[Finding]:
    names = tuple(name for name in subject.trainable if name not in subject.held)
    if names and subject.held:
        yield error(
            enumerated(names, "trainable parameter", "in no optimizer"),
            "they get gradients and never move, as after a thaw without fl.sync",
            _sync(subject),
            names,
        )


@check("in-two-groups")
def in_two_groups(subject: Subject) -> Iterator[Finding]:
    names = tuple(name for name in subject.parameters if subject.held[name] > 1)
    if names:
        yield error(
            enumerated(names, "parameter", "in more than one group"),
            "each step moves them twice, by two learning rates",
            _new_optimizer(subject, "AdamW"),
            names,
        )


@check("outgrown-state")
def outgrown_state(subject: Subject) -> Iterator[Finding]:
    names = tuple(
        subject.names[id(parameter)]
        for optimizer in subject.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in subject.names and outgrown(optimizer, parameter, group) is not None
    )
    if names:
        yield error(
            enumerated(names, "parameter", "with optimizer state of another shape"),
            "their data were resized after a step, as by resize_token_embeddings, and the next "
            "step fails; or, by a fused kernel, reads past the end of the state",
            _sync(subject),
            names,
        )


@check("stale-gradient")
def stale_gradient(subject: Subject) -> Iterator[Finding]:
    names = tuple(name for name in subject.frozen if subject.parameters[name].grad is not None)
    if names:
        moves = any(name in subject.held for name in names)
        why = "the next step moves them, frozen or not" if moves else "clipping counts them"
        yield (error if moves else warning)(
            enumerated(names, "frozen parameter", "with a gradient from before"),
            f"{why}: gradients are left over from a backward pass before the freeze",
            "model.zero_grad(set_to_none=True)  # fl.freeze does it for what it freezes",
            names,
        )


@check("other-scheduler")
def other_scheduler(subject: Subject) -> Iterator[Finding]:
    for scheduler in subject.schedulers if subject.optimizers else ():
        kind = type(scheduler).__name__
        owner = getattr(scheduler, "optimizer", None)
        if owner is not None and not any(owner is known for known in subject.optimizers):
            yield error(
                f"{kind} schedules another optimizer than the one given",
                "the learning rate of the one that steps would never change",
                f"scheduler = {kind}(optimizer, ...)  # made anew from this optimizer",
                (kind,),
            )


@check("scheduler-groups")
def scheduler_groups(subject: Subject) -> Iterator[Finding]:
    for scheduler in subject.schedulers:
        kind = type(scheduler).__name__
        owner: Any = getattr(scheduler, "optimizer", None)
        rates = getattr(scheduler, "base_lrs", None)
        is_known = any(owner is known for known in subject.optimizers)
        if is_known and rates is not None and len(rates) != len(owner.param_groups):
            yield error(
                f"{kind} knows {counted(len(rates), 'group')}, the optimizer has "
                f"{len(owner.param_groups)}",
                "schedulers raise on a group that was added later, or leave it as it is",
                f"scheduler = {kind}(optimizer, ...)  # anew; fl.sync(optimizer, model, "
                "schedulers=[scheduler]) adds groups to both",
                (kind,),
            )


@check("frozen-in-optimizer")
def frozen_in_optimizer(subject: Subject) -> Iterator[Finding]:
    thawed_later = {id(p) for part in subject.parts for p in part.selection.parameters}
    names = tuple(
        name
        for name in subject.frozen
        if name in subject.held and id(subject.parameters[name]) not in thawed_later
    )
    if names:
        yield warning(
            enumerated(names, "frozen parameter", "in the optimizer"),
            "as soon as one has a gradient of any kind, zeros too, momentum and weight decay move "
            "it; its state takes memory",
            _sync(subject),
            names,
        )


@check("learning-rate")
def learning_rate(subject: Subject) -> Iterator[Finding]:
    for optimizer in subject.optimizers if subject.held else ():
        name = type(optimizer).__name__.lower()
        kind = "AdamW" if any(word in name for word in _ADAMS) else "SGD"
        if kind == "AdamW" or name == "sgd":
            yield from _too_high(subject, optimizer.param_groups, kind)
            yield from _too_low(subject, optimizer.param_groups, kind)


def _too_high(subject: Subject, groups: list[Any], kind: str) -> Iterator[Finding]:
    found: dict[str, tuple[float, list[str]]] = {}
    for group in groups:
        wanted = (subject.names.get(id(p)) for p in group["params"] if p.requires_grad)
        members = [name for name in wanted if name is not None]
        part = "pretrained layers" if subject.frozen else "the whole model"
        if subject.in_last_stage.issuperset(members):
            part = "the head"
        if members and _peak(group) > _MOST[kind][part]:
            highest, names = found.get(part, (0.0, []))
            found[part] = max(highest, _peak(group)), names + members
    for part, (highest, names) in found.items():
        most = _MOST[kind][part]
        yield (note if part == "the whole model" else warning)(
            f"a learning rate of {highest:g} for {part}: {listed(names)}",
            f"above {most:g} the first steps destroy what was learnt, or the loss diverges",
            _slower(subject, kind),
            tuple(names),
        )


def _too_low(subject: Subject, groups: list[Any], kind: str) -> Iterator[Finding]:
    """Judged by the highest: lower layers may go far down by a layer-wise decay."""
    moving = [g for g in groups if has_rate(g) and any(p.requires_grad for p in g["params"])]
    highest = max(map(_peak, moving), default=_LEAST[kind])
    if highest < _LEAST[kind]:
        yield warning(
            f"the highest learning rate is {highest:g}",
            f"below {_LEAST[kind]:g} hardly anything moves within a usual number of epochs",
            _slower(subject, kind),
        )


def _peak(group: dict[str, Any]) -> float:
    """The highest rate that a schedule would give, as far as the group says; 0 without a rate."""
    rates = (group.get(key) for key in ("lr", "initial_lr", "max_lr"))
    return max((float(rate) for rate in rates if rate is not None), default=0.0)


def _slower(subject: Subject, kind: str) -> str:
    lr = default_lr(subject.root, optimizer="adamw" if kind == "AdamW" else "sgd")
    return either(_new_optimizer(subject, kind), f"--lr {lr:g}")


def _new_optimizer(subject: Subject, kind: str) -> str:
    lr = default_lr(subject.root, optimizer="adamw" if kind == "AdamW" else "sgd")
    return f"optimizer = torch.optim.{kind}(fl.param_groups(model, lr={lr:g}))"


def _sync(subject: Subject) -> str:
    if len(subject.optimizers) > 1:
        return "Sync each optimizer with the part that it trains: fl.sync(optimizer, model.part)."
    if subject.schedulers:
        return "fl.sync(optimizer, model, schedulers=schedulers)"
    return "fl.sync(optimizer, model)  # the trainable join, the frozen leave"
