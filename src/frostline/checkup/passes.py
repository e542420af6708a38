"""Whether the example goes through the model at all, forwards and backwards, in finite numbers."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.checkup.findings import Finding, listed
from frostline.checkup.subject import Check, Subject
from frostline.checkup.trial import Failure
from frostline.errors import one_line
from frostline.fingerprints.parts import is_finite

_CODES = {
    "forward pass in train mode": "forward-failed",
    "forward pass in eval mode": "forward-failed",
    "backward pass": "backward-failed",
}


def _failed(subject: Subject) -> Iterator[Finding]:
    failure = subject.trial
    if not isinstance(failure, Failure) or failure.step == "preparation":
        return
    yield Finding(
        _CODES[failure.step],
        "error",
        f"the {failure.step} on the example ended with {one_line(failure.error)}",
        "training would end at its first batch; checks that need the pass were left out",
        "Fix the forward, or give the example as the model takes it: a tensor, a tuple of "
        "arguments, or a dict of named ones; with batch norm at least two samples.",
    )


def _not_tried(subject: Subject) -> Iterator[Finding]:
    why, failure = subject.why_not_tried, subject.trial
    if isinstance(failure, Failure) and failure.step == "preparation":
        why = f"looking at its modules ended with {one_line(failure.error)}"
    if subject.example is None or not why:
        return
    yield Finding(
        "not-tried",
        "note",
        f"the example was not run, as {why}",
        "checks of gradients, modes and outputs need a pass on one device",
        "Check the model before it is sharded, with its weights loaded.",
    )


def _not_finite(subject: Subject) -> Iterator[Finding]:
    bad = [n for n, p in subject.parameters.items() if not p.is_meta and not is_finite(p, n)]
    if bad:
        yield Finding(
            "not-finite",
            "error",
            f"NaN or infinite numbers in {listed(bad)}",
            "they spread to the loss and to all that is trained",
            "Load the weights again; if they come from a run, from a checkpoint before it broke.",
            tuple(bad),
        )
        return
    facts = subject.facts
    if facts is None:
        return
    names = tuple(n for n, kind in facts.gradients.items() if kind == "not finite")
    in_output = not all(is_finite(output, "the output") for output in facts.outputs)
    if names or in_output:
        where = "the output" if in_output else f"the gradients of {listed(names)}"
        yield Finding(
            "not-finite",
            "error",
            f"NaN or infinite numbers in {where} on the example",
            "the first step would make NaN of all that is trained",
            "Look at the example for NaN; in the forward for a division by, a root or a logarithm "
            "of zero; in half precision, compute the loss in float32.",
            names,
        )


CHECKS = (
    Check(_failed, ("forward-failed", "backward-failed")),
    Check(_not_finite, ("not-finite",)),
    Check(_not_tried, ("not-tried",)),
)
