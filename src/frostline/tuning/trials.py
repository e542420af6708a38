"""One form against plain float32 on real samples: how exact, how fast, and what it fails at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from torch import Tensor
from torch.fx import GraphModule

from frostline.tuning.faithfulness import distance
from frostline.tuning.forms import PLAIN, Form
from frostline.tuning.realising import Realised, realise
from frostline.tuning.results import Trial, format_error
from frostline.tuning.timing import timed

SLOW: Final = 2.0
"""A form must need more than this many times plain float32's time to be put aside for it.

Forms that a machine has instructions for need 0.15 to 0.9 times, those that it emulates 5 times
and more: the quickest of a few runs side by side does not cross that gap, on a busy machine too.
"""
_PAIRS = 3
_TIMED_SAMPLES = 8
_LONG_SECONDS = 0.1  # a run of this length that is as quick as plain float32 needs no second


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """Real samples, and what plain float32 makes of them.

    Attributes:
        prefix: what is tuned.
        tolerance: the relative error allowed.
        samples: one tensor `(batch, ...)` for each input.
        plain: the prefix in plain float32.
        outputs: of `plain` on all samples.
    """

    prefix: GraphModule
    tolerance: float
    samples: tuple[Tensor, ...]
    plain: Realised
    outputs: tuple[Tensor, ...]

    @property
    def timed(self) -> tuple[Tensor, ...]:
        """The samples of a timed run."""
        return tuple(tensor[:_TIMED_SAMPLES] for tensor in self.samples)


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """A trial, and what was found beside it.

    Attributes:
        run: the form, where it passed.
        plain_seconds: per sample, of plain float32 beside it; None where nothing was timed.
        is_slow: whether it was refused since the machine is slow at it.
    """

    trial: Trial
    run: Realised | None = None
    plain_seconds: float | None = None
    is_slow: bool = False


def prepare(prefix: GraphModule, samples: Sequence[Tensor], *, tolerance: float) -> Bench:
    """Compute the samples in plain float32."""
    plain = realise(prefix, PLAIN)
    return Bench(prefix, tolerance, tuple(samples), plain, plain(*samples))


def attempt(bench: Bench, form: Form) -> Attempt:
    """Compare what one form gives, and time it; whatever it fails at is the reason it is refused.

    The comparison also makes the kernels, so that they are not timed.
    """
    try:
        run = realise(bench.prefix, form)
        outputs = run(*bench.samples)
        try:
            error = distance(outputs, bench.outputs).error
        except ValueError as reason:
            return Attempt(Trial(form, refused=str(reason)))
        return _held_to_tolerance(bench, form, run, error)
    except Exception as error:  # whatever a form cannot do, plain float32 can
        return Attempt(Trial(form, refused=_failure(error)))


def _held_to_tolerance(bench: Bench, form: Form, run: Realised, error: float) -> Attempt:
    if error > bench.tolerance:
        allowed = format_error(bench.tolerance)
        reason = f"relative error {format_error(error)} where {allowed} is allowed"
        return Attempt(Trial(form, None, error, reason))
    own, plain = _side_by_side(bench, run)
    if own > SLOW * plain:
        reason = f"{own / plain:.1f} times as slow as plain float32"
        return Attempt(Trial(form, own, error, reason), None, plain, is_slow=True)
    return Attempt(Trial(form, own, error), run, plain)


def _side_by_side(bench: Bench, run: Realised) -> tuple[float, float]:
    """Seconds per sample of a form and of plain float32, each the quickest of a few runs."""
    inputs, own, plain = bench.timed, math.inf, math.inf
    for _ in range(_PAIRS):
        plain = min(plain, timed(bench.plain, inputs)[1])
        own = min(own, timed(run, inputs)[1])
        if own <= plain and plain > _LONG_SECONDS:
            break
    return own / len(inputs[0]), plain / len(inputs[0])


def _failure(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"failed with {type(error).__name__}: {first_line}"
