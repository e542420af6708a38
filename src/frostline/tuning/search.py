"""Try the forms of a prefix on real samples; the fastest within tolerance wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from torch import Tensor
from torch.fx import GraphModule

from frostline.errors import ConfigError
from frostline.tuning.batches import choose_batch_size
from frostline.tuning.candidates import candidates
from frostline.tuning.forms import PLAIN, Form
from frostline.tuning.realising import Realised
from frostline.tuning.results import Tuned
from frostline.tuning.trials import Attempt, Bench, attempt, confirm, prepare

DEFAULT_TOLERANCE: Final = 0.02
"""Relative error that `auto` allows: bfloat16 keeps 0.3-1.3 % in networks from AlexNet to ViT, far
less than augmentation moves features; 2 % tells these from a network that it does not suit."""

Precision = Literal["exact", "auto"] | float

_WORTH_SECONDS: Final = 0.003  # a plain run quicker than this is not worth a search
_TRIAL_SHARE: Final = 0.25  # of the seconds still to be gained is what a further trial may cost
_OUT_OF_REACH: Final = 2.0  # float32 in another layout gained 1.3 times, rarely twice
_TIE: Final = 1.05  # of the quickest time: among these the smallest error wins


def tune_and_realise(
    prefix: GraphModule,
    samples: Sequence[Tensor],
    *,
    precision: Precision = "auto",
    batch_size: int = 32,
    planned_samples: int | None = None,
    allow_compile: bool = False,
) -> tuple[Tuned, Realised | None]:
    """Find the fastest form of `prefix` within tolerance, on this machine.

    The form was measured to be faster than plain float32, and its error on all of `samples` is
    within tolerance; where no form is both, it is plain float32. What fails is refused with the
    reason, never fatal.

    Args:
        prefix: takes flat tensors `(batch, ...)` and gives a tuple of tensors `(batch, ...)`.
        samples: one batch of real inputs, a tensor `(batch, ...)` for each input of `prefix`, on
            the device to compute on. 16 to 64 will do: up to 16 are timed, all are compared.
        precision: `"exact"` is plain float32, with nothing timed; `"auto"` allows
            `DEFAULT_TOLERANCE`; a number allows that relative error.
        batch_size: samples per pass, unless another size proves quicker.
        planned_samples: how many are to be computed afterwards; no trial is made that would cost
            more than it can gain over them. `None`: so many that the search does not matter.
        allow_compile: try `torch.compile` as well, which takes tens of seconds.

    Returns:
        The decision, and the prefix in the form that was chosen; None for plain float32.
    Raises:
        ConfigError: no such precision, no samples, or a batch size below 1.
    """
    tolerance = _tolerance(precision)
    _check(samples, batch_size)
    if tolerance is None:
        return Tuned(PLAIN, 0.0, batch_size), None
    bench = prepare(prefix, samples, tolerance=tolerance, batch_size=batch_size)
    device = samples[0].device
    forms = candidates(prefix, device, tolerance=tolerance, allow_compile=allow_compile)
    attempts = _try_all(bench, forms, planned_samples)
    attempts, chosen = _choose(bench, attempts)
    if chosen is None:  # what a refused form had put out of reach
        tried = [attempt.trial.form for attempt in attempts]
        rest = [form for form in forms if form not in tried]
        more, chosen = _choose(bench, _try_all(bench, rest, planned_samples))
        attempts += more
    trials = tuple(attempt.trial for attempt in attempts)
    plain = bench.seconds / bench.count
    if chosen is None or chosen.run is None:
        return Tuned(PLAIN, 0.0, batch_size, trials, plain, plain), None
    size = choose_batch_size(chosen.run, samples, batch_size, planned_samples=planned_samples)
    error = chosen.distance.error
    tuned = Tuned(chosen.trial.form, error, size, trials, chosen.seconds, plain)
    return tuned, chosen.run


def _tolerance(precision: Precision) -> float | None:
    """The relative error allowed; `None` asks for exactness."""
    if precision == "exact":
        return None
    if precision == "auto":
        return DEFAULT_TOLERANCE
    number = isinstance(precision, int | float) and not isinstance(precision, bool)
    if number and 0 < float(precision) < math.inf:
        return float(precision)
    raise ConfigError(
        f"precision is 'exact', 'auto' or the relative error to allow, above 0; got {precision!r}. "
        "For no error at all, write 'exact'."
    )


def _check(samples: Sequence[Tensor], batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"the batch size is at least 1; got {batch_size}.")
    if not samples or any(tensor.ndim == 0 or len(tensor) == 0 for tensor in samples):
        raise ConfigError("tuning measures on real samples, and was given none. Give it 16 or so.")
    counts = [len(tensor) for tensor in samples]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the inputs of one batch hold {', '.join(map(str, counts))} samples. "
            "Give each the same number."
        )


def _try_all(bench: Bench, forms: Sequence[Form], planned: int | None) -> list[Attempt]:
    attempts: list[Attempt] = []
    best = bench.seconds
    for form in forms:
        if not _is_worth_it(bench, best, planned):
            break
        if not _is_covered(bench, form, attempts):
            attempts.append(attempt(bench, form, best_seconds=best))
            best = min(best, attempts[-1].seconds * bench.count)
    return attempts


def _is_worth_it(bench: Bench, best_seconds: float, planned: int | None) -> bool:
    """Whether a trial, about as long as a plain run, may gain more than it costs."""
    if planned is None:
        return bench.seconds > _WORTH_SECONDS
    return bench.seconds < _TRIAL_SHARE * best_seconds / bench.count * planned


def _is_covered(bench: Bench, form: Form, attempts: Sequence[Attempt]) -> bool:
    """Whether a form that does the same and more has passed, or one out of this one's reach."""
    reduced = [a.seconds * bench.count for a in attempts if a.trial.form.dtype != "float32"]
    if form.dtype == "float32" and any(s * _OUT_OF_REACH < bench.seconds for s in reduced):
        return not form.compiled
    passed = [attempt.trial.form for attempt in attempts if not attempt.trial.refused]
    return not form.compiled and any(
        form.dtype == other.dtype
        and form.channels_last <= other.channels_last
        and form.folded <= other.folded
        for other in passed
    )


def _choose(bench: Bench, attempts: list[Attempt]) -> tuple[list[Attempt], Attempt | None]:
    """The attempts with what confirming them showed, and the one to take."""
    attempts = list(attempts)
    while passed := [attempt for attempt in attempts if attempt.run is not None]:
        limit = _TIE * min(attempt.seconds for attempt in passed)
        ties = [attempt for attempt in passed if attempt.seconds <= limit]
        favourite = min(ties, key=lambda attempt: attempt.distance.error)
        place = attempts.index(favourite)
        attempts[place] = confirm(bench, favourite)
        if attempts[place].run is not None:
            return attempts, attempts[place]
    return attempts, None
