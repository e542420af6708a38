"""Whether the end of the model suits the classes and the loss, and no two layers are one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from frostline.checkup.findings import Finding, error, note, warning
from frostline.checkup.subject import Subject, check
from frostline.wording import either

_AT_THE_END = ("Softmax", "LogSoftmax", "Identity", "Dropout")  # may follow the last linear layer
_SOFTMAX_TOLERANCE = 1e-3  # half precision sums 1000 classes to within this


@check("logits-width")
def logits_width(subject: Subject) -> Iterator[Finding]:
    logits, classes = subject.facts.logits, subject.classes
    if classes is None or logits is None or logits.dim() != 2 or logits.shape[1] == classes:
        return
    fewer = logits.shape[1] < classes
    yield (error if fewer else warning)(
        f"{logits.shape[1]} logits for {classes} classes",
        "cross-entropy raises on a class without a logit"
        if fewer
        else "the other logits take part in every softmax, as from a classifier of other data",
        either(
            "from frostline.models import replace_classifier; "
            f"replace_classifier(model, classes={classes})",
            "--on classifier",
        ),
    )


@check("target-range")
def target_range(subject: Subject) -> Iterator[Finding]:
    logits, targets = subject.facts.logits, subject.targets
    if logits is None or logits.dim() != 2 or targets is None or targets.is_floating_point():
        return
    is_indices = targets.dim() == 1 and targets.numel()
    width, highest = logits.shape[1], int(targets.max()) if is_indices else -1
    if highest >= max(width, subject.classes or 0):
        yield error(
            f"a target of {highest} for {width} logits, which are counted from 0",
            "cross-entropy raises on the first such sample, on a GPU without saying which",
            "targets = targets - 1  # if they are counted from 1; else give the head more logits",
        )


@check("softmax-output")
def softmax_output(subject: Subject) -> Iterator[Finding]:
    logits, (path, kind) = subject.facts.logits, subject.facts.watch.last
    if logits is None or logits.shape[1] < 2 or kind == "LogSoftmax":
        return
    is_last = kind == "Softmax"
    if is_last or _sums_to_one(logits):
        yield warning(
            "each row of the output lies in 0..1 and sums to 1"
            + (f"; the last layer is {path}, a Softmax" if is_last else ""),
            "cross-entropy takes the softmax itself: of a softmax its gradients are weak, and the "
            "loss never falls far",
            _identity(path) if is_last else "Return the logits from the forward.",
            (path,) if is_last else (),
        )


def _sums_to_one(output: Tensor) -> bool:
    values = output.float()
    sums = values.sum(dim=1)
    in_range = bool((values >= 0).all() and (values <= 1).all())
    close = torch.allclose(sums, torch.ones_like(sums), atol=_SOFTMAX_TOLERANCE)
    # Rows of one-hot numbers are labels rather than probabilities.
    return in_range and close and bool(((values > 0) & (values < 1)).any())


@check("log-softmax")
def log_softmax(subject: Subject) -> Iterator[Finding]:
    logits, (path, kind) = subject.facts.logits, subject.facts.watch.last
    if logits is not None and logits.shape[1] > 1 and kind == "LogSoftmax":
        yield note(
            f"the model ends in LogSoftmax ({path})",
            "cross-entropy takes a logarithm of a softmax of its own; a second one changes "
            "nothing but costs time",
            _identity(path),
            (path,),
        )


def _identity(path: str) -> str:
    return f"model.set_submodule({path!r}, torch.nn.Identity())"


@check("stacked-linear")
def stacked_linear(subject: Subject) -> Iterator[Finding]:
    watch = subject.facts.watch
    for first, second in watch.stacked:
        before, after = (subject.root.get_submodule(path) for path in (first, second))
        assert isinstance(before, nn.Linear)
        lower, upper = (any(p.requires_grad for p in m.parameters()) for m in (before, after))
        is_last = second == watch.last_linear and (
            second == watch.last[0] or watch.last[1] in _AT_THE_END
        )
        # A hidden layer on frozen logits can say more than one layer: a nonlinearity follows. Two
        # frozen layers are as they are.
        if upper and (lower or is_last):
            yield warning(
                f"{second} reads {first} with no nonlinearity between",
                "two linear layers in a row make one linear map: the pair can say no more than a "
                f"single layer on the {before.in_features} numbers that {first} reads",
                either(
                    f"model.set_submodule({first!r}, torch.nn.Sequential("
                    f"model.get_submodule({first!r}), torch.nn.ReLU()))  # or leave one out",
                    "--on classifier, or --head 100",
                ),
                (first, second),
            )
