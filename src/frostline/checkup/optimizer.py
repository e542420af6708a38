"""Whether the optimizer holds exactly what is trainable, at a rate that can work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from frostline.checkup.findings import Finding, counted, listed
from frostline.checkup.subject import Check, Subject
from frostline.groups import default_lr
from frostline.optimizer_sync import has_rate, outgrown

_NEW = "optimizer = torch.optim.AdamW(fl.param_groups(model, lr={lr:g}))"
# Usual are 1e-5 to 1e-2 for heads and 1e-6 to 3e-4 for pretrained layers with Adam and the like;
# a linear probe on fixed features bears up to 30 with SGD (He et al. 2020, MoCo). The limits lie
# well outside of these, as a doctor that warns of what works is not listened to.
_ADAMS = ("adam", "lamb", "lion", "adafactor", "rmsprop", "adagrad", "adan", "adabelief")
_MOST_ADAM = {"head": 0.1, "pretrained": 1e-3, "all": 1e-2}
_MOST_SGD = {"head": 30.0, "pretrained": 0.1, "all": 1.0}
_LEAST_ADAM, _LEAST_SGD = 1e-6, 1e-5


def _held(subject: Subject) -> Counter[int]:
    """How often each tensor stands in a group, by `id()`."""
    groups = [group for optimizer in subject.optimizers for group in optimizer.param_groups]
    return Counter(id(p) for group in groups for p in group["params"])


def _is_of_model(subject: Subject) -> bool:
    return not subject.names.keys().isdisjoint(_held(subject))


def _other_model(subject: Subject) -> Iterator[Finding]:
    if not subject.optimizers or _is_of_model(subject) or not subject.trainable:
        return
    yield Finding(
        "other-model",
        "error",
        f"the optimizer holds no parameter of this {type(subject.root).__name__}",
        "it was made from another model, a copy, or before parameters were replaced: it would "
        "step, and this model would never move",
        _new(subject),
    )


def _not_in_optimizer(subject: Subject) -> Iterator[Finding]:
    if not subject.optimizers or not _is_of_model(subject):
        return
    held = _held(subject)
    names = tuple(n for n in subject.trainable if id(subject.parameters[n]) not in held)
    if names:
        yield Finding(
            "not-in-optimizer",
            "error",
            f"{counted(len(names), 'trainable parameter')} in no optimizer: {listed(names)}",
            "they get gradients and never move, as after a thaw without fl.sync",
            _sync(subject),
            names,
        )


def _frozen_in_optimizer(subject: Subject) -> Iterator[Finding]:
    held = _held(subject)
    frozen = {n: p for n, p in subject.parameters.items() if not p.requires_grad}
    later = subject.trainable_later if subject.plan else frozenset[int]()
    names = tuple(n for n, p in frozen.items() if id(p) in held and id(p) not in later)
    if names and _is_of_model(subject):
        yield Finding(
            "frozen-in-optimizer",
            "warning",
            f"{counted(len(names), 'frozen parameter')} in the optimizer: {listed(names)}",
            "as soon as one has a gradient of any kind, zeros too, momentum and weight decay move "
            "it; its state takes memory",
            _sync(subject),
            names,
        )


def _in_two_groups(subject: Subject) -> Iterator[Finding]:
    held = _held(subject)
    names = tuple(name for key, name in subject.names.items() if held[key] > 1)
    if names:
        yield Finding(
            "in-two-groups",
            "error",
            f"{counted(len(names), 'parameter')} in more than one group: {listed(names)}",
            "each step moves them twice, by two learning rates",
            _new(subject),
            names,
        )


def _outgrown_states(subject: Subject) -> Iterator[Finding]:
    names = tuple(
        subject.names[id(parameter)]
        for optimizer in subject.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in subject.names and outgrown(optimizer, parameter, group) is not None
    )
    if names:
        yield Finding(
            "outgrown-state",
            "error",
            f"{counted(len(names), 'parameter')} with optimizer state of another shape: "
            f"{listed(names)}",
            "their data were resized after a step, as by resize_token_embeddings, and the next "
            "step fails; or, by a fused kernel, reads past the end of the state",
            _sync(subject),
            names,
        )


def _stale_gradients(subject: Subject) -> Iterator[Finding]:
    frozen = {n: p for n, p in subject.parameters.items() if not p.requires_grad}
    names = tuple(n for n, p in frozen.items() if p.grad is not None)
    if not names:
        return
    held = _held(subject)
    moves = any(id(frozen[name]) in held for name in names)
    why = "the next step moves them, frozen or not" if moves else "clipping counts them"
    yield Finding(
        "stale-gradient",
        "error" if moves else "warning",
        f"{counted(len(names), 'frozen parameter')} with a gradient from before: {listed(names)}",
        f"{why}: gradients are left over from a backward pass before the freeze",
        "model.zero_grad(set_to_none=True)  # fl.freeze does it for what it freezes",
        names,
    )


def _schedulers(subject: Subject) -> Iterator[Finding]:
    known = {id(optimizer): optimizer for optimizer in subject.optimizers}
    for scheduler in subject.schedulers if known else ():
        kind = type(scheduler).__name__
        owner = getattr(scheduler, "optimizer", None)
        rates = getattr(scheduler, "base_lrs", None)
        if owner is not None and id(owner) not in known:
            yield Finding(
                "other-scheduler",
                "error",
                f"{kind} schedules another optimizer than the one given",
                "the learning rate of the one that steps would never change",
                f"scheduler = {kind}(optimizer, ...)  # made anew from this optimizer",
                (kind,),
            )
        elif owner is not None and rates is not None and len(rates) != len(owner.param_groups):
            yield Finding(
                "scheduler-groups",
                "error",
                f"{kind} knows {counted(len(rates), 'group')}, the optimizer has "
                f"{len(owner.param_groups)}",
                "schedulers raise on a group that was added later, or leave it as it is",
                f"scheduler = {kind}(optimizer, ...)  # anew; fl.sync(optimizer, model, "
                "schedulers=[scheduler]) adds groups to both",
                (kind,),
            )


def _learning_rate(subject: Subject) -> Iterator[Finding]:
    if not _is_of_model(subject):
        return
    for optimizer in subject.optimizers:
        kind = type(optimizer).__name__.lower()
        is_adam = any(word in kind for word in _ADAMS)
        if is_adam or kind == "sgd":
            yield from _too_high(subject, optimizer.param_groups, is_adam=is_adam)
            yield from _too_low(subject, optimizer.param_groups, is_adam=is_adam)


def _too_high(subject: Subject, groups: list[Any], *, is_adam: bool) -> Iterator[Finding]:
    most = _MOST_ADAM if is_adam else _MOST_SGD
    what = {"head": "the head", "pretrained": "pretrained layers", "all": "the whole model"}
    found: dict[str, tuple[float, list[str]]] = {}
    for group in groups:
        members = [p for p in group["params"] if id(p) in subject.names and p.requires_grad]
        part = _part(subject, members)
        if members and _peak(group) > most[part]:
            highest, names = found.get(part, (0.0, []))
            names += [subject.names[id(p)] for p in members]
            found[part] = max(highest, _peak(group)), names
    for part, (highest, names) in found.items():
        yield Finding(
            "learning-rate",
            "note" if part == "all" else "warning",
            f"a learning rate of {highest:g} for {what[part]}: {listed(names)}",
            f"above {most[part]:g} the first steps destroy what was learnt, or the loss diverges",
            _slower(subject, is_adam=is_adam),
            tuple(names),
        )


def _too_low(subject: Subject, groups: list[Any], *, is_adam: bool) -> Iterator[Finding]:
    """Judged by the highest: lower layers may go far down by a layer-wise decay."""
    least = _LEAST_ADAM if is_adam else _LEAST_SGD
    moving = [g for g in groups if has_rate(g) and any(p.requires_grad for p in g["params"])]
    highest = max(map(_peak, moving), default=least)
    if highest < least:
        yield Finding(
            "learning-rate",
            "warning",
            f"the highest learning rate is {highest:g}",
            f"below {least:g} hardly anything moves within a usual number of epochs",
            _slower(subject, is_adam=is_adam),
        )


def _peak(group: dict[str, Any]) -> float:
    """The highest rate that a schedule would give, as far as the group says; 0 without a rate."""
    rates = (group.get(key) for key in ("lr", "initial_lr", "max_lr"))
    return max((float(rate) for rate in rates if rate is not None), default=0.0)


def _part(subject: Subject, members: list[Tensor]) -> str:
    if all(id(p) in subject.in_last_stage for p in members):
        return "head"
    whole = len(subject.trainable) == len(subject.parameters)
    return "all" if whole else "pretrained"


def _slower(subject: Subject, *, is_adam: bool) -> str:
    lr = default_lr(subject.root, optimizer="adamw" if is_adam else "sgd")
    kind = "AdamW" if is_adam else "SGD"
    return (
        f"optimizer = torch.optim.{kind}(fl.param_groups(model, lr={lr:g}))  "
        f"# on the command line: --lr {lr:g}"
    )


def _new(subject: Subject) -> str:
    return _NEW.format(lr=default_lr(subject.root, optimizer="adamw"))


def _sync(subject: Subject) -> str:
    if len(subject.optimizers) > 1:
        return "Sync each optimizer with the part that it trains: fl.sync(optimizer, model.part)."
    if subject.schedulers:
        return "fl.sync(optimizer, model, schedulers=schedulers)"
    return "fl.sync(optimizer, model)  # the trainable join, the frozen leave"


CHECKS = (
    Check(_other_model, ("other-model",)),
    Check(_not_in_optimizer, ("not-in-optimizer",)),
    Check(_in_two_groups, ("in-two-groups",)),
    Check(_outgrown_states, ("outgrown-state",)),
    Check(_stale_gradients, ("stale-gradient",)),
    Check(_schedulers, ("other-scheduler", "scheduler-groups")),
    Check(_frozen_in_optimizer, ("frozen-in-optimizer",)),
    Check(_learning_rate, ("learning-rate",)),
)
