"""Try the forms of a prefix on real samples; the first that is faithful wins.

The order is what the processor or accelerator computes in hardware, and does not depend on the
clock: two runs on one machine choose the same form, however busy it is. Timing only puts aside a
form that the machine turns out to be slow at, by a margin that no noise crosses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from torch import Tensor
from torch.fx import GraphModule

from frostline.errors import ConfigError
from frostline.tuning.candidates import candidates
from frostline.tuning.forms import PLAIN, Form
from frostline.tuning.realising import Realised
from frostline.tuning.results import Tuned
from frostline.tuning.trials import Attempt, attempt, prepare

DEFAULT_TOLERANCE: Final = 0.02
"""Relative error that `auto` allows: bfloat16 keeps 0.3-1.3 % in networks from AlexNet to ViT, far
less than augmentation moves features; 2 % tells these from a network that it does not suit."""

Precision = Literal["exact", "auto"] | float

_WORTH_SAMPLES: Final = 64  # fewer to compute than this are computed while forms are tried


def tune_and_realise(
    prefix: GraphModule,
    samples: Sequence[Tensor],
    *,
    precision: Precision = "auto",
    batch_size: int = 32,
    planned_samples: int | None = None,
    allow_compile: bool = False,
) -> tuple[Tuned, Realised | None]:
    """Find the form of `prefix` that this machine is best at, within tolerance.

    Its error on all of `samples` is within tolerance, and it is not much slower than plain
    float32; where no form is both, it is plain float32. What fails is refused with the reason,
    never fatal.

    Args:
        prefix: takes flat tensors `(batch, ...)` and gives a tuple of tensors `(batch, ...)`.
        samples: one batch of real inputs, a tensor `(batch, ...)` for each input of `prefix`, on
            the device to compute on. 16 will do: all are compared, some are timed.
        precision: `"exact"` is plain float32, with nothing timed; `"auto"` allows
            `DEFAULT_TOLERANCE`; a number allows that relative error.
        batch_size: samples per pass.
        planned_samples: how many are to be computed afterwards; for few, nothing is tried. `None`:
            so many that the search does not matter.
        allow_compile: try `torch.compile` first, which takes tens of seconds.

    Returns:
        The decision, and the prefix in the form that was chosen; None for plain float32.
    Raises:
        ConfigError: no such precision, no samples, or a batch size below 1.
    """
    tolerance = _tolerance(precision)
    _check(samples, batch_size)
    few = planned_samples is not None and planned_samples < _WORTH_SAMPLES
    if tolerance is None or few:
        return Tuned(PLAIN, 0.0, batch_size), None
    device = samples[0].device
    forms = candidates(prefix, device, tolerance=tolerance, allow_compile=allow_compile)
    bench = prepare(prefix, samples, tolerance=tolerance)
    attempts: list[Attempt] = []
    for form in forms:
        if _is_hopeless(form, attempts):
            continue
        attempts.append(attempt(bench, form))
        found = attempts[-1]
        if found.run is not None:
            trials = tuple(tried.trial for tried in attempts)
            error, seconds = found.trial.error or 0.0, found.trial.seconds_per_sample
            tuned = Tuned(form, error, batch_size, trials, seconds, found.plain_seconds)
            return tuned, found.run
    return Tuned(PLAIN, 0.0, batch_size, tuple(tried.trial for tried in attempts)), None


def _is_hopeless(form: Form, attempts: Sequence[Attempt]) -> bool:
    """Whether the machine was slow at the form's dtype: the rest of that dtype is not tried."""
    return any(tried.is_slow and tried.trial.form.dtype == form.dtype for tried in attempts)


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
