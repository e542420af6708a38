"""What was asked, by a selector or a plan: does it match and fit, hold, and leave anything."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from frostline.checkup.findings import Finding, counted, listed
from frostline.checkup.subject import Check, Subject
from frostline.errors import ConfigError, FreezeError, SelectorError, nearest
from frostline.freezing.refusals import unholdable
from frostline.freezing.rows import held_rows
from frostline.selectors import Entry, Selection, Selector, nothing, select, stages
from frostline.selectors.inventory import Occurrence
from frostline.wrappers import wrappers


def lazy_finding(model: nn.Module) -> Finding | None:
    """A model some of whose parameters have no shape yet; nothing else can be said of it."""
    names = tuple(name for name, parameter in model.named_parameters() if is_lazy(parameter))
    if not names:
        return None
    return Finding(
        "lazy-module",
        "error",
        f"{counted(len(names), 'parameter')} without a shape yet: {listed(names)}",
        "they can neither be frozen nor given to an optimizer before the first call",
        "model(example)  # one batch gives lazy modules their shapes",
        names,
    )


def refused_finding(error: FreezeError) -> Finding:
    """The freeze that was asked for cannot be."""
    return Finding(
        "cannot-freeze",
        "error",
        str(error),
        "what was asked for would be refused; the other checks saw the model as it is",
        "Choose another selector; fl.select(model, ...) shows what one matches.",
    )


def _unholdable(subject: Subject) -> Iterator[Finding]:
    """What is frozen by hand and would be refused by `fl.freeze`, since it does not stay so."""
    stock = subject.inventory
    off = (i for i, e in enumerate(stock.entries) if e.is_parameter and not e.tensor.requires_grad)
    found: dict[tuple[str, str], list[str]] = {}
    for name, why, fix in unholdable(Selection(nothing, stock, frozenset(off))):
        found.setdefault((why, fix), []).append(name)
    for (why, fix), names in found.items():
        yield Finding(
            "cannot-freeze",
            "error",
            f"{listed(names)}: {why.removesuffix('.')}",
            "requires_grad=False alone does not keep it as it is, and fl.freeze would refuse it",
            fix,
            tuple(names),
        )


def _unmatched(subject: Subject) -> Iterator[Finding]:
    if subject.asked is None:
        return
    for term in subject.asked.leaves():
        try:
            select(subject.root, term)
        except SelectorError as error:
            yield _unmatched_finding(subject, term, str(error))


def _unmatched_finding(subject: Subject, term: Selector, message: str) -> Finding:
    asked, word = str(subject.asked), str(term)
    near = nearest(word, subject.inventory.names, count=1)
    call = "train_only" if subject.verb == "train" else "freeze"
    fix = "print(fl.select(model, 'all'))  # shows every name"
    if near:
        fixed = asked.replace(word, near[0])
        fix = f"fl.{call}(model, {fixed!r})  # on the command line: --{subject.verb} '{fixed}'"
    return Finding(
        "no-match",
        "error",
        " ".join(message.split()),
        "elsewhere a pattern that matches nothing freezes or trains nothing, and nobody says so",
        fix,
        (word,),
    )


def _nothing_trainable(subject: Subject) -> Iterator[Finding]:
    if subject.trainable or not subject.parameters:
        return
    yield Finding(
        "nothing-trainable",
        "error",
        f"none of the {counted(len(subject.parameters), 'parameter')} wants a gradient",
        "the backward pass would raise, or an optimizer would have nothing to move",
        "fl.train_only(model, 'stage:-1')  # or what is to train; --train 'stage:-1'",
    )


def _everything_trainable(subject: Subject) -> Iterator[Finding]:
    if len(subject.trainable) < len(subject.parameters) or not subject.parameters:
        return
    if subject.plan is not None or any(map(held_rows, subject.parameters.values())):
        return
    if len(stages(subject.inventory)) < 2 or any(True for _ in _unmatched(subject)):
        return
    yield Finding(
        "everything-trainable",
        "note" if subject.asked is None else "warning",
        f"all {counted(len(subject.parameters), 'parameter')} want gradients; nothing is frozen",
        "nothing is saved in time or memory, and pretrained layers take the head's first steps",
        "fl.freeze(model, 'stage:0..-2')  # if that is not meant; --freeze 'stage:0..-2'",
    )


def _useless_switch(subject: Subject) -> Iterator[Finding]:
    """`module.requires_grad = False` sets an attribute that nothing reads."""
    names = tuple(p for p, m in subject.root.named_modules() if "requires_grad" in m.__dict__)
    wanting = [n for n in names if any(p.requires_grad for p in _module(subject, n).parameters())]
    if wanting:
        yield Finding(
            "useless-switch",
            "error",
            f"requires_grad was set on the module {listed(wanting)}, not on its parameters",
            "a module has no such switch: the line sets an attribute and freezes nothing",
            f"fl.freeze(model, {' | '.join(wanting)!r}, leaving='nothing')",
            tuple(wanting),
        )


def _tied_split(subject: Subject) -> Iterator[Finding]:
    """A tensor under several names whose neighbours are switched otherwise in one of the places."""
    entries = subject.inventory.entries
    tied = {id(e.tensor): e for e in entries if e.is_parameter and len(e.occurrences) > 1}
    for entry in tied.values():
        wanted = entry.tensor.requires_grad
        odd = [place for place in entry.occurrences if _neighbours(place, tied) == {not wanted}]
        if odd:
            yield _tied_finding(entry, odd)


def _tied_finding(entry: Entry, odd: list[Occurrence]) -> Finding:
    names = entry.names
    others = [name for name in names if name not in {place.name for place in odd}]
    wanted = entry.tensor.requires_grad
    apart = others[-1] if others and wanted else odd[-1].name
    left = next(name for name in names if name != apart)
    path, _, leaf = apart.rpartition(".")
    fix = (
        f"model.get_submodule({path!r}).{leaf} = "
        f"torch.nn.Parameter(model.get_parameter({apart!r}).detach().clone())"
    )
    if wanted:
        fix += f"; fl.freeze(model, {left!r})"
    state, other = ("trains", "frozen") if wanted else ("is frozen", "trainable")
    return Finding(
        "tied-split",
        "warning",
        f"{' = '.join(names[:3])} is one tensor and {state}, beside {other} neighbours at "
        f"{listed([place.name for place in odd])}",
        "what is frozen or trained under one name is so under all of its names",
        f"{fix}  # if each place is to have its own",
        names,
    )


def _neighbours(place: Occurrence, tied: Container[int]) -> set[bool]:
    """The switches of the untied parameters of the nearest module around that has any."""
    for owner in reversed(place.owners):
        others = {p.requires_grad for p in owner.parameters() if id(p) not in tied}
        if others:
            return others
    return set()


def _module(subject: Subject, path: str) -> nn.Module:
    return subject.root.get_submodule(path)


def _plan(subject: Subject) -> Iterator[Finding]:
    if subject.plan is None:
        return
    try:
        warnings = subject.plan.check(subject.root)
    except (SelectorError, ConfigError) as error:
        yield Finding(
            "plan-error",
            "error",
            " ".join(str(error).split()),
            "the phase could not begin",
            "Change the phase; plan.table(model) shows what each trains.",
        )
        return
    for warning in warnings:
        yield Finding(
            "plan-warning",
            "warning",
            warning,
            "the plan would do what it says, which is hardly what is meant",
            "Change the phase, then print(plan.table(model)).",
        )


def _recompiles(subject: Subject) -> Iterator[Finding]:
    if subject.plan is None or not _is_compiled(subject.model):
        return
    phases = len({part.selection.names for part in subject.parts})
    if phases < 2:
        return
    limit = _limit()
    beyond = phases > limit
    yield Finding(
        "recompiles",
        "warning" if beyond else "note",
        f"the model is compiled, and the plan has {counted(phases, 'set')} of trainable "
        f"parameters; torch's limit is {limit}",
        "each set is compiled anew, and beyond the limit the model runs uncompiled without a word"
        if beyond
        else "each set is compiled anew, at the first step of its phase",
        f"torch._dynamo.config.recompile_limit = {2 * phases}"
        if beyond
        else "Nothing, if the phases are long; else compile the model of the last phase only.",
    )


def _is_compiled(model: nn.Module) -> bool:
    """By `torch.compile(model)` around it, or by `model.compile()` in it or in a part of it."""
    around = any(type(wrapper).__name__ == "OptimizedModule" for wrapper in wrappers(model))
    return around or any(module._compiled_call_impl is not None for module in model.modules())


def _limit() -> int:
    # The compiler takes a second to import, and is there if a compiled model is.
    dynamo: Any = sys.modules.get("torch._dynamo")
    return int(dynamo.config.recompile_limit) if dynamo is not None else 8


CHECKS = (
    Check(_unmatched, ("no-match",)),
    Check(_unholdable, ("cannot-freeze",)),
    Check(_useless_switch, ("useless-switch",)),
    Check(_nothing_trainable, ("nothing-trainable",)),
    Check(_tied_split, ("tied-split",)),
    Check(_everything_trainable, ("everything-trainable",)),
    Check(_plan, ("plan-error", "plan-warning")),
    Check(_recompiles, ("recompiles",)),
)
CODES = ("lazy-module",)
"""Of a finding that no check gives: it says why the checks cannot be made."""
