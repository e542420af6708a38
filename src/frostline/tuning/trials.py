"""One form against plain float32 on real samples: how fast, how exact, and what it fails at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import torch
from torch import Tensor
from torch.fx import GraphModule

from frostline.tuning.faithfulness import NO_DISTANCE, Distance, distance
from frostline.tuning.forms import PLAIN, Form
from frostline.tuning.realising import Realised, realise
from frostline.tuning.results import Trial, format_error
from frostline.tuning.timing import timed

GAIN: Final = 0.95
"""Of plain float32's time a form must need no more than this: less is within the noise."""

_FEWEST, _MOST = 4, 16  # samples per timed run on a CPU
_SECONDS_PER_RUN = 0.4  # ... and as many as plain float32 computes in this
_LONG_SECONDS = 0.1  # a run of this length tells enough without being repeated
_PATIENCE = 2.0  # a first run this many times slower than the best is not followed by a second
_PATIENCE_SECONDS = 0.05  # ... on top of which a first run may need this to make its kernels


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """Real samples, and plain float32 measured on the first `count` of them.

    Attributes:
        prefix: what is tuned.
        tolerance: the relative error allowed.
        samples: one tensor `(batch, ...)` for each input.
        plain: the prefix in plain float32.
        count: samples per timed run.
        outputs: of `plain` on the timed samples.
        seconds: `plain` took for them.
    """

    prefix: GraphModule
    tolerance: float
    samples: tuple[Tensor, ...]
    plain: Realised
    count: int
    outputs: tuple[Tensor, ...]
    seconds: float

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The timed samples."""
        return tuple(tensor[: self.count] for tensor in self.samples)

    @property
    def rest(self) -> tuple[tuple[Tensor, ...], ...]:
        """The samples that are not timed, in batches of at most `count`."""
        parts = [torch.split(tensor[self.count :], self.count) for tensor in self.samples]
        return tuple(zip(*parts, strict=True)) if len(self.samples[0]) > self.count else ()


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """A trial, with what further measurements need of a form that passed; `run` is then there."""

    trial: Trial
    distance: Distance = NO_DISTANCE
    run: Realised | None = None

    @property
    def seconds(self) -> float:
        """Per sample; infinite if the form was refused."""
        seconds = self.trial.seconds_per_sample
        return math.inf if self.trial.refused or seconds is None else seconds


def prepare(
    prefix: GraphModule, samples: Sequence[Tensor], *, tolerance: float, batch_size: int
) -> Bench:
    """Measure plain float32, on no more samples than it takes to compare with."""
    plain, given = realise(prefix, PLAIN), len(samples[0])
    on_cpu = samples[0].device.type == "cpu"
    few = min(2 if on_cpu else batch_size, given)
    first = [tensor[:few] for tensor in samples]
    _, seconds = timed(plain, first)
    if few * _SECONDS_PER_RUN / seconds < _MOST:  # or was it slow since it was the first?
        seconds = min(seconds, timed(plain, first)[1])
    fitting = int(few * _SECONDS_PER_RUN / seconds)
    count = min(given, max(_FEWEST, min(_MOST, fitting)) if on_cpu else batch_size)
    inputs = [tensor[:count] for tensor in samples]
    outputs, seconds = timed(plain, inputs)
    seconds = _quickest(plain, inputs, seconds)
    return Bench(prefix, tolerance, tuple(samples), plain, count, outputs, seconds)


def attempt(bench: Bench, form: Form, *, best_seconds: float) -> Attempt:
    """Time one form and compare what it gives; whatever it fails at is the reason it is refused.

    Args:
        bench: what to measure on, and plain float32.
        form: what to try.
        best_seconds: the quickest run of any form so far; one run is enough if it is hopeless.
    """
    try:
        return _measured(bench, form, realise(bench.prefix, form), best_seconds)
    except Exception as error:  # whatever a form cannot do, plain float32 can
        return Attempt(Trial(form, refused=_failure(error)))


def confirm(bench: Bench, found: Attempt) -> Attempt:
    """Compare a form that passed on the samples not timed as well, and time it again if close.

    Gives it back with its error over all samples, or refused.
    """
    if found.run is None:
        return found
    try:
        total = found.distance
        for inputs in bench.rest:
            total += distance(found.run(*inputs), bench.plain(*inputs))
        checked = Attempt(replace(found.trial, error=total.error), total, found.run)
        return _held_to_tolerance(bench, _timed_again(bench, checked))
    except Exception as error:  # as above
        return _refuse(found, _failure(error))


def _measured(bench: Bench, form: Form, run: Realised, best_seconds: float) -> Attempt:
    outputs, seconds = timed(run, bench.inputs)
    try:
        found = distance(outputs, bench.outputs)
    except ValueError as error:
        return Attempt(Trial(form, seconds / bench.count, refused=str(error)))
    first = Attempt(Trial(form, seconds / bench.count, found.error), found, run)
    if found.error > bench.tolerance:
        return _held_to_tolerance(bench, first)
    if form.compiled or seconds <= _PATIENCE * best_seconds + _PATIENCE_SECONDS:
        seconds = _quickest(run, bench.inputs, timed(run, bench.inputs)[1], seconds)
    trial = Trial(form, seconds / bench.count, found.error)
    return _held_to_speed(Attempt(trial, found, run), bench.seconds / bench.count)


def _timed_again(bench: Bench, found: Attempt) -> Attempt:
    """Where the race was close, once more side by side."""
    if found.seconds * bench.count < 0.8 * bench.seconds:
        return found
    plain = min(bench.seconds, timed(bench.plain, bench.inputs)[1])
    return _held_to_speed(found, plain / bench.count)


def _quickest(run: Realised, inputs: Sequence[Tensor], *seconds: float) -> float:
    """The quickest of the runs so far, and of one more if they are short."""
    if min(seconds) > _LONG_SECONDS:
        return min(seconds)
    return min(*seconds, timed(run, inputs)[1])


def _held_to_speed(found: Attempt, plain_seconds: float) -> Attempt:
    if found.seconds <= GAIN * plain_seconds:
        return found
    return _refuse(found, "no faster than plain float32")


def _held_to_tolerance(bench: Bench, found: Attempt) -> Attempt:
    error = found.distance.error
    if error <= bench.tolerance:
        return found
    allowed = format_error(bench.tolerance)
    return _refuse(found, f"relative error {format_error(error)} where {allowed} is allowed")


def _refuse(found: Attempt, reason: str) -> Attempt:
    return Attempt(replace(found.trial, refused=found.trial.refused or reason))


def _failure(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"failed with {type(error).__name__}: {first_line}"
