"""Try the forms of a prefix on real samples; the first that is faithful wins.

The order is what the processor or accelerator computes in hardware, and does not depend on the
clock: two runs on one machine choose the same form, however busy it is. Timing only puts aside a
form that the machine turns out to be slow at, by a margin that no noise crosses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, final

import torch
from torch import Tensor
from torch.fx import GraphModule

from frostline.choices import DecodingName, FloatName, PrefixPrecision
from frostline.errors import ConfigError, one_line
from frostline.tuning.drafts import draft_of
from frostline.tuning.forms import DTYPES, PLAIN, Form, fast_dtypes
from frostline.tuning.realising import Realised, realise
from frostline.tuning.rewriting import count_convolutions, count_foldable

DEFAULT_TOLERANCE: Final = 0.02
"""Relative error that `auto` allows: bfloat16 keeps 0.3-1.8 % in most networks of docs/networks.md,
far less than augmentation moves features; 2 % sets these apart from one that it does not suit, as
MobileNetV2 with ImageNet weights, at 10 %."""

SLOW: Final = 2.0
"""A form must need more than this many times plain float32's time to be put aside for it.

Forms that a machine has instructions for need 0.15 to 0.9 times, those that it emulates 5 times
and more: the quickest of a few runs side by side does not cross that gap, on a busy machine too.
"""
_FAR = 2.0
"""An error so many times the tolerance comes of the dtype: layout and folding move it by less."""
_PAIRS = 3
_TIMED_SAMPLES = 8
_LONG_SECONDS = 0.01  # a run of this length that is as quick as plain float32 needs no second
WORTH_SAMPLES: Final = 64
"""Fewer samples to compute than this are computed while forms are tried."""
# A single convolution that cuts an image into patches does not pay for the layout.
_CONVOLUTIONS_FOR_LAYOUT: Final = 2


@final
@dataclass(frozen=True, slots=True)
class FormTrial:
    """One form as measured on real samples.

    Attributes:
        form: what was tried.
        seconds_per_sample: the quickest run; `None` if none was completed.
        error: L2 distance from plain float32, relative to its norm, of the worst output over all
            given samples; `None` if unknown.
        refused: why it cannot be used; empty if it can.
        plain_seconds_per_sample: of plain float32 beside it; `None` if nothing was timed.
        is_slow: whether it was refused since the machine is slow at it.
    """

    form: Form
    seconds_per_sample: float | None = None
    error: float | None = None
    refused: str = ""
    plain_seconds_per_sample: float | None = None
    is_slow: bool = False


@final
@dataclass(frozen=True, slots=True)
class DecodingTrial:
    """One decoding of pictures as measured on real ones, with the form that was chosen before.

    Attributes:
        decoding: what was tried.
        speedup: how many times as fast as decoding them in full.
        error: mean over the pictures of the relative error of their features, of form and decoding
            together; of a picture's worst output.
        worst: the largest of these.
    """

    decoding: DecodingName
    speedup: float
    error: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.decoding} {self.speedup:.1f} times as fast, relative error "
            f"{percent(self.error)}, of the worst picture tried {percent(self.worst)}"
        )


@final
@dataclass(frozen=True, slots=True)
class Tuned:
    """The form to compute a prefix in, and the evidence for it.

    Attributes:
        form: the first within tolerance that is not slow; plain float32 where none is.
        error: as in `FormTrial`, over all given samples; 0 for plain float32. Where pictures are
            not decoded in full, that of the worst one tried.
        batch_size: samples per pass.
        trials: what was tried, in that order; empty if exactness was asked for.
        seconds_per_sample: of the form; `None` if nothing was timed.
        plain_seconds_per_sample: of plain float32; `None` if nothing was timed.
        decodings: those of pictures that were tried, the last one taken if the form has it.
    """

    form: Form
    error: float
    batch_size: int
    trials: tuple[FormTrial, ...] = ()
    seconds_per_sample: float | None = None
    plain_seconds_per_sample: float | None = None
    decodings: tuple[DecodingTrial, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times the speed of plain float32; 1 for plain float32 itself."""
        own, plain = self.seconds_per_sample, self.plain_seconds_per_sample
        return plain / own if self.form.computing != PLAIN and own and plain else 1.0

    def __str__(self) -> str:
        if self.form == PLAIN:
            return f"{self.form}, exactly as in the model"
        words = f"{self.form.computing}"
        if self.form.computing != PLAIN:
            words += f", {self.speedup:.1f} times the speed of plain float32"
        if self.form.decoding == "full":
            return f"{words}, relative error {percent(self.error)}"
        return f"{words}; pictures decoded {self.decodings[-1]}"


def tune_and_realise(
    prefix: GraphModule,
    samples: Sequence[Tensor],
    *,
    precision: PrefixPrecision = "auto",
    batch_size: int = 32,
    planned_samples: int | None = None,
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

    Returns:
        The decision, and the prefix in the form that was chosen; None for plain float32.
    Raises:
        ConfigError: no such precision, no samples, or a batch size below 1.
    """
    tolerance = tolerance_of(precision)
    _check(samples, batch_size)
    few = planned_samples is not None and planned_samples < WORTH_SAMPLES
    if tolerance is None or few:
        return Tuned(PLAIN, 0.0, batch_size), None
    plain = realise(prefix, PLAIN)
    bench = _Bench(prefix, tolerance, tuple(samples), plain, plain(*samples))
    trials: list[FormTrial] = []
    for form in candidates(prefix, samples[0].device, tolerance=tolerance):
        if any(trial.form.dtype == form.dtype and bench.ends(trial) for trial in trials):
            continue
        trial, run = bench.attempt(form)
        trials.append(trial)
        if run is not None:
            seconds = trial.seconds_per_sample, trial.plain_seconds_per_sample
            return Tuned(form, trial.error or 0.0, batch_size, tuple(trials), *seconds), run
    return Tuned(PLAIN, 0.0, batch_size, tuple(trials)), None


def candidates(prefix: GraphModule, device: torch.device, *, tolerance: float) -> tuple[Form, ...]:
    """Forms to try, most promising first, each different from plain float32 in this prefix.

    None is compiled, which takes tens of seconds. Dtypes whose mere rounding exceeds `tolerance`,
    or that the device is slow at, are left out.
    """
    draft = draft_of(prefix)
    values = draft.values.values()
    is_float32 = any(isinstance(v, Tensor) and v.dtype == torch.float32 for v in values)
    # A quarter of the unit roundoff: less relative error than that is luck.
    luck = {name: torch.finfo(dtype).eps / 8 for name, dtype in DTYPES.items()}
    reduced = [name for name in fast_dtypes(device) if is_float32 and luck[name] <= tolerance]
    dtypes: list[FloatName] = [*reduced, "float32"]
    # All that apply, the one that does all at once first.
    convolutions = count_convolutions(draft)
    layouts = (True, False) if convolutions >= _CONVOLUTIONS_FOR_LAYOUT else (False,)
    foldings = (True, False) if count_foldable(draft) else (False,)
    forms = (Form(*each) for each in product(dtypes, layouts, foldings))
    return tuple(form for form in forms if form != PLAIN)


def tolerance_of(precision: PrefixPrecision) -> float | None:
    """The relative error allowed; `None` asks for exactness.

    Raises:
        ConfigError: no such precision.
    """
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


@final
@dataclass(frozen=True, slots=True)
class _Bench:
    """Forms of one prefix against plain float32 on real samples: how exact, and how fast.

    Attributes:
        samples: one tensor `(batch, ...)` for each input.
        plain: the prefix in plain float32.
        outputs: of `plain` on all samples.
    """

    prefix: GraphModule
    tolerance: float
    samples: tuple[Tensor, ...]
    plain: Realised
    outputs: tuple[Tensor, ...]

    def ends(self, trial: FormTrial) -> bool:
        """Whether no other form of its dtype is worth a try, be it slow or far from exact."""
        return trial.is_slow or (trial.error or 0.0) > _FAR * self.tolerance

    def attempt(self, form: Form) -> tuple[FormTrial, Realised | None]:
        """What one form gives, and the form where it passed.

        The comparison also makes the kernels, so that they are not timed.
        """
        try:
            run = realise(self.prefix, form)
            outputs = run(*self.samples)
            try:
                error = relative_error(outputs, self.outputs)
            except ValueError as reason:
                return FormTrial(form, refused=str(reason)), None
            if error > self.tolerance:
                allowed = percent(self.tolerance)
                refused = f"relative error {percent(error)} where {allowed} is allowed"
                return FormTrial(form, None, error, refused), None
            own, plain = self._side_by_side(run)
        except Exception as failure:  # whatever a form cannot do, plain float32 can
            return FormTrial(form, refused=f"failed with {one_line(failure, first=True)}"), None
        is_slow = own > SLOW * plain
        refused = f"{own / plain:.1f} times as slow as plain float32" if is_slow else ""
        return FormTrial(form, own, error, refused, plain, is_slow), None if is_slow else run

    def _side_by_side(self, run: Realised) -> tuple[float, float]:
        """Seconds per sample of a form and of plain float32, each the quickest of a few runs."""
        inputs = [tensor[:_TIMED_SAMPLES] for tensor in self.samples]
        own = plain = math.inf
        for _ in range(_PAIRS):
            plain = min(plain, seconds_of(self.plain, inputs))
            own = min(own, seconds_of(run, inputs))
            if own <= plain and plain > _LONG_SECONDS:
                break
        return own / len(inputs[0]), plain / len(inputs[0])


def seconds_of(run: Realised, inputs: Sequence[Tensor]) -> float:
    """The wall-clock seconds of one call, the device's work included."""
    device = inputs[0].device
    _wait_for(device)
    start = time.perf_counter()
    run(*inputs)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def relative_error(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The L2 distance of the worst output from plain float32's, relative to that one's norm.

    Infinite where only the reference is 0.

    Raises:
        ValueError: they cannot stand for each other: another number, shape or dtype, integers that
            differ, or NaN or infinity in other places. Says which.
    """
    if len(outputs) != len(reference):
        raise ValueError(f"{len(outputs)} outputs instead of {len(reference)}")
    errors = []
    for pair in zip(outputs, reference, strict=True):
        difference, size = _norms(*pair)
        errors.append(difference and (difference / size if size else math.inf))
    return max(errors, default=0.0)


def _norms(output: Tensor, reference: Tensor) -> tuple[float, float]:
    """Of the difference and of the reference."""
    if (output.shape, output.dtype) != (reference.shape, reference.dtype):
        raise ValueError(
            f"gives {output.dtype} {tuple(output.shape)} instead of "
            f"{reference.dtype} {tuple(reference.shape)}"
        )
    if not (reference.is_floating_point() or reference.is_complex()):
        if not torch.equal(output, reference):
            raise ValueError("integers differ from those of plain float32")
        return 0.0, 0.0
    norms = _norm(output - reference), _norm(reference)
    if all(map(math.isfinite, norms)):
        return norms
    finite = reference.isfinite()
    same = (output == reference) | (output.isnan() & reference.isnan())
    if not bool((finite & output.isfinite() | ~finite & same).all()):
        raise ValueError("NaN or infinity where plain float32 has none")
    return _norm((output - reference)[finite]), _norm(reference[finite])


def _norm(tensor: Tensor) -> float:
    # Sums in float64 without a float64 copy of the features.
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(tensor, dtype=wide)) if tensor.numel() else 0.0


def percent(error: float) -> str:
    """`0.0031` -> `0.31 %`; tiny ones as a power of ten, where percent would be all zeros."""
    return f"{error:.1e}" if 0 < error < 1e-5 else f"{error * 100:.2g} %"
