"""Whether the example goes through the model at all, forwards and backwards, in finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from frostline.checkup.findings import Finding, error, listed, note
from frostline.checkup.subject import Check, Subject, check
from frostline.errors import one_line
from frostline.fingerprints.parts import is_finite


def _failed(pass_: str, subject: Subject) -> Iterator[Finding]:
    step, failure = subject.facts.failure or ("", None)
    if failure is not None and step.startswith(pass_):
        yield error(
            f"the {step} on the example ended with {one_line(failure)}",
            "training would end at its first batch; checks that need the pass were left out",
            "Fix the forward, or give the example as the model takes it: a tensor, a tuple of "
            "arguments, or a dict of named ones; with batch norm at least two samples.",
        )


forward_failed = Check("forward-failed", partial(_failed, "forward pass"))
backward_failed = Check("backward-failed", partial(_failed, "backward pass"))


@check("not-finite")
def not_finite(subject: Subject) -> Iterator[Finding]:
    weights = subject.parameters.items()
    bad = tuple(name for name, p in weights if not p.is_meta and not is_finite(p, name))
    if bad:
        yield error(
            f"NaN or infinite numbers in {listed(bad)}",
            "they spread to the loss and to all that is trained",
            "Load the weights again; if they come from a run, from a checkpoint before it broke.",
            bad,
        )
        return
    names = subject.facts.with_gradient("not finite")
    in_output = not all(is_finite(output, "the output") for output in subject.facts.outputs)
    if names or in_output:
        where = "the output" if in_output else f"the gradients of {listed(names)}"
        yield error(
            f"NaN or infinite numbers in {where} on the example",
            "the first step would make NaN of all that is trained",
            "Look at the example for NaN; in the forward for a division by, a root or a logarithm "
            "of zero; in half precision, compute the loss in float32.",
            names,
        )


@check("not-tried")
def not_tried(subject: Subject) -> Iterator[Finding]:
    why, failure = subject.why_not_tried, subject.facts.failure
    if failure is not None and failure[0] == "preparation":
        why = f"looking at its modules ended with {one_line(failure[1])}"
    if subject.example is not None and why:
        yield note(
            f"the example was not run, as {why}",
            "checks of gradients, modes and outputs need a pass on one device",
            "Check the model before it is sharded, with its weights loaded.",
        )
