"""Whether the end of the model suits the classes and the loss, and no two layers are one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from frostline.checkup.findings import Finding
from frostline.checkup.subject import Check, Subject

_AT_THE_END = ("Softmax", "LogSoftmax", "Identity", "Dropout")  # may follow the last linear layer
_SOFTMAX_TOLERANCE = 1e-3  # half precision sums 1000 classes to within this


def _logits_width(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    if facts is None or facts.logits is None or facts.logits.dim() != 2:
        return
    width = facts.logits.shape[1]
    if subject.classes is not None and width != subject.classes:
        fewer = width < subject.classes
        yield Finding(
            "logits-width",
            "error" if fewer else "warning",
            f"{width} logits for {subject.classes} classes",
            "cross-entropy raises on a class without a logit"
            if fewer
            else "the other logits take part in every softmax, as from a classifier of other data",
            _new_head(subject.classes),
        )
    highest = _highest(subject.targets)
    if highest is not None and highest >= max(width, subject.classes or 0):
        yield Finding(
            "target-range",
            "error",
            f"a target of {highest} for {width} logits, which are counted from 0",
            "cross-entropy raises on the first such sample, on a GPU without saying which",
            "targets = targets - 1  # if they are counted from 1; else give the head more logits",
        )


def _highest(targets: Tensor | None) -> int | None:
    """The highest class index; None where the targets are no class indices."""
    if targets is None or targets.dim() != 1 or not targets.numel() or targets.is_floating_point():
        return None
    return int(targets.max())


def _new_head(classes: int) -> str:
    return (
        "from frostline.models import replace_classifier; "
        f"replace_classifier(model, classes={classes})  # on the command line: --on classifier"
    )


def _softmax(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    if facts is None or facts.logits is None or facts.logits.shape[1] < 2:
        return
    path, kind = facts.watch.last
    if kind == "LogSoftmax":
        yield Finding(
            "log-softmax",
            "note",
            f"the model ends in LogSoftmax ({path})",
            "cross-entropy takes a logarithm of a softmax of its own; a second one changes "
            "nothing but costs time",
            _identity(path),
            (path,),
        )
    elif kind == "Softmax" or _sums_to_one(facts.logits):
        yield Finding(
            "softmax-output",
            "warning",
            "each row of the output lies in 0..1 and sums to 1"
            + (f"; the last layer is {path}, a Softmax" if kind == "Softmax" else ""),
            "cross-entropy takes the softmax itself: of a softmax its gradients are weak, and the "
            "loss never falls far",
            _identity(path) if kind == "Softmax" else "Return the logits from the forward.",
            (path,) if kind == "Softmax" else (),
        )


def _sums_to_one(output: Tensor) -> bool:
    values = output.float()
    sums = values.sum(dim=1)
    in_range = bool((values >= 0).all() and (values <= 1).all())
    close = torch.allclose(sums, torch.ones_like(sums), atol=_SOFTMAX_TOLERANCE)
    # Rows of one-hot numbers are labels rather than probabilities.
    return in_range and close and bool(((values > 0) & (values < 1)).any())


def _identity(path: str) -> str:
    return f"model.set_submodule({path!r}, torch.nn.Identity())"


def _stacked_linear(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    for first, second in facts.watch.stacked if facts else ():
        if not _is_wasted(subject, first, second):
            continue
        before = subject.root.get_submodule(first)
        assert isinstance(before, nn.Linear)
        yield Finding(
            "stacked-linear",
            "warning",
            f"{second} reads {first} with no nonlinearity between",
            "two linear layers in a row make one linear map: the pair can say no more than a "
            f"single layer on the {before.in_features} numbers that {first} reads",
            f"model.set_submodule({first!r}, torch.nn.Sequential(model.get_submodule({first!r}), "
            "torch.nn.ReLU()))  "
            "# or leave one out; on the command line: --on classifier, or --head 100",
            (first, second),
        )


def _is_wasted(subject: Subject, first: str, second: str) -> bool:
    """Whether what trains could say more.

    A hidden layer on frozen logits can: a nonlinearity follows. Two frozen layers are as they are.
    """
    lower, upper = (
        any(p.requires_grad for p in subject.root.get_submodule(path).parameters())
        for path in (first, second)
    )
    path, kind = subject.facts.watch.last if subject.facts else ("", "")
    return upper and (lower or path == second or kind in _AT_THE_END)


CHECKS = (
    Check(_logits_width, ("logits-width", "target-range")),
    Check(_softmax, ("softmax-output", "log-softmax")),
    Check(_stacked_linear, ("stacked-linear",)),
)
