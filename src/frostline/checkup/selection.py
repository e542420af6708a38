"""What was asked, by a selector or a plan: does it match and fit, hold, and leave anything."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from typing import Any

from frostline.checkup.findings import Finding, counted, error, listed, note, warning
from frostline.checkup.subject import Subject, check
from frostline.errors import ConfigError, SelectorError, nearest
from frostline.freezing.refusals import unholdable
from frostline.freezing.rows import held_rows
from frostline.selectors import Selection, nothing, select, stages
from frostline.selectors.inventory import Occurrence
from frostline.wording import either
from frostline.wrappers import wrappers


@check("no-match")
def no_match(subject: Subject) -> Iterator[Finding]:
    for term in subject.asked.leaves() if subject.asked else ():
        try:
            select(subject.root, term)
        except SelectorError as message:
            shows = either("print(fl.select(model, 'all'))", "frostline inspect MODEL")
            fix = f"{shows}  # shows every name"
            for name in nearest(str(term), subject.inventory.names, count=1):
                fixed = str(subject.asked).replace(str(term), name)
                call, typed = ("train_only", "train") if subject.train else ("freeze", "freeze")
                fix = either(f"fl.{call}(model, {fixed!r})", f"--{typed} '{fixed}'")
            yield error(
                " ".join(str(message).split()),
                "elsewhere a pattern that matches nothing freezes or trains nothing, and nobody "
                "says so",
                fix,
                (str(term),),
            )


@check("cannot-freeze")
def unholdable_by_hand(subject: Subject) -> Iterator[Finding]:
    """What is frozen by hand and would be refused by `fl.freeze`, since it does not stay so."""
    stock = subject.inventory
    off = (i for i, e in enumerate(stock.entries) if e.is_parameter and not e.tensor.requires_grad)
    found: dict[tuple[str, str], list[str]] = {}
    for name, why, fix in unholdable(Selection(nothing, stock, frozenset(off))):
        found.setdefault((why, fix), []).append(name)
    for (why, fix), names in found.items():
        yield error(
            f"{listed(names)}: {why.removesuffix('.')}",
            "requires_grad=False alone does not keep it as it is, and fl.freeze would refuse it",
            fix,
            tuple(names),
        )


@check("useless-switch")
def useless_switch(subject: Subject) -> Iterator[Finding]:
    """`module.requires_grad = False` sets an attribute that nothing reads."""
    names = tuple(
        path
        for path, module in subject.root.named_modules()
        if "requires_grad" in module.__dict__ and any(p.requires_grad for p in module.parameters())
    )
    if names:
        frozen = {id(p) for path in names for p in subject.root.get_submodule(path).parameters()}
        remains = any(p.requires_grad and id(p) not in frozen for p in subject.root.parameters())
        leaving = "" if remains else ", leaving='nothing'"
        yield error(
            f"requires_grad was set on the module {listed(names)}, not on its parameters",
            "a module has no such switch: the line sets an attribute and freezes nothing",
            f"fl.freeze(model, {' | '.join(names)!r}{leaving})",
            names,
        )


@check("nothing-trainable")
def nothing_trainable(subject: Subject) -> Iterator[Finding]:
    if subject.frozen and not subject.trainable:
        yield error(
            f"none of the {counted(len(subject.frozen), 'parameter')} wants a gradient",
            "the backward pass would raise, or an optimizer would have nothing to move",
            either("fl.train_only(model, 'stage:-1')", "--train 'stage:-1'")
            + "  # or what is to train",
        )


@check("tied-split")
def tied_split(subject: Subject) -> Iterator[Finding]:
    """A tensor under several names whose neighbours are switched otherwise in one of the places."""
    entries = subject.inventory.entries
    tied = {id(e.tensor): e for e in entries if e.is_parameter and len(e.occurrences) > 1}
    for entry in tied.values():
        trains, names = entry.tensor.requires_grad, entry.names
        places = entry.occurrences
        odd = [place.name for place in places if _neighbours(place, tied) == {not trains}]
        if not odd:
            continue
        others = [name for name in names if name not in odd]
        apart = others[-1] if others and trains else odd[-1]
        path, _, leaf = apart.rpartition(".")
        fix = (
            f"model.get_submodule({path!r}).{leaf} = "
            f"torch.nn.Parameter(model.get_parameter({apart!r}).detach().clone())"
        )
        if trains:
            fix += f"; fl.freeze(model, {next(name for name in names if name != apart)!r})"
        state, other = ("trains", "frozen") if trains else ("is frozen", "trainable")
        yield warning(
            f"{' = '.join(names[:3])} is one tensor and {state}, beside {other} neighbours at "
            f"{listed(odd)}",
            "what is frozen or trained under one name is so under all of its names",
            f"{fix}  # if each place is to have its own",
            names,
        )


def _neighbours(place: Occurrence, tied: Container[int]) -> set[bool]:
    """The switches of the untied parameters of the nearest module around that has any."""
    owners = reversed(place.owners)
    around = ({p.requires_grad for p in m.parameters() if id(p) not in tied} for m in owners)
    return next(filter(None, around), set())


@check("everything-trainable")
def everything_trainable(subject: Subject) -> Iterator[Finding]:
    if subject.frozen or not subject.trainable or subject.plan is not None:
        return
    if len(stages(subject.inventory)) < 2 or any(map(held_rows, subject.parameters.values())):
        return
    if not any(no_match.find(subject)):
        yield (warning if subject.asked else note)(
            f"all {counted(len(subject.trainable), 'parameter')} want gradients; nothing is frozen",
            "nothing is saved in time or memory, and pretrained layers take the head's first steps",
            either("fl.freeze(model, 'stage:0..-2')", "--freeze 'stage:0..-2'")
            + "  # if that is not meant",
        )


def _said_of_plan(subject: Subject) -> tuple[str, tuple[str, ...]]:
    """Why the plan cannot be; else what it warns of."""
    try:
        return "", subject.plan.check(subject.root) if subject.plan else ()
    except (SelectorError, ConfigError) as refusal:
        return " ".join(str(refusal).split()), ()


@check("plan-error")
def plan_error(subject: Subject) -> Iterator[Finding]:
    if refusal := _said_of_plan(subject)[0]:
        yield error(
            refusal,
            "the phase could not begin",
            "Change the phase; plan.table(model) shows what each trains.",
        )


@check("plan-warning")
def plan_warning(subject: Subject) -> Iterator[Finding]:
    for seen in _said_of_plan(subject)[1]:
        yield warning(
            seen,
            "the plan would do what it says, which is hardly what is meant",
            "Change the phase, then print(plan.table(model)).",
        )


@check("recompiles")
def recompiles(subject: Subject) -> Iterator[Finding]:
    # By `torch.compile(model)` around it, or by `model.compile()` in it or in a part of it.
    around = any(type(wrapper).__name__ == "OptimizedModule" for wrapper in wrappers(subject.model))
    inside = any(m._compiled_call_impl is not None for m in subject.model.modules())
    phases = subject.trained_sets
    if not (around or inside) or phases < 2:
        return
    # The compiler takes a second to import, and is there if a compiled model is.
    dynamo: Any = sys.modules.get("torch._dynamo")
    limit = int(dynamo.config.recompile_limit) if dynamo is not None else 8
    seen = (
        f"the model is compiled, and the plan has {counted(phases, 'set')} of trainable "
        f"parameters; torch's limit is {limit}"
    )
    if 2 * phases > limit:  # its training and its validation, which records no gradients
        yield warning(
            seen,
            "each set is compiled anew, for training and for validation, and beyond the limit the "
            "model runs uncompiled with no more than a warning",
            f"torch._dynamo.config.recompile_limit = {4 * phases}  # before the first step",
        )
    else:
        yield note(
            seen,
            "each set is compiled anew, at the first step of its phase",
            "Nothing, if the phases are long; else compile the model of the last phase only.",
        )
