"""The prefix of a cut, ready to compute features: in which form, and how faithful it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from math import isnan
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from frostline._files import write_text
from frostline.calling import in_turn
from frostline.choices import PrefixPrecision
from frostline.cutting import Cut
from frostline.data import some_rows
from frostline.errors import ConfigError, OutputError
from frostline.tuning import (
    DEFAULT_TOLERANCE,
    PLAIN,
    DecodingTrial,
    Form,
    Realised,
    Tuned,
    machine,
    realise,
    tune_and_realise,
)
from frostline.units import Stopwatch

_DECISIONS = "forms.json"  # beside the features; losing it costs one more measurement
_MOST_BYTES: Final = 4 << 20
_LARGEST_BATCH: Final = 1 << 16
# Torch's newer names: the older ones raise once one of the newer was set.
_CPU_SETTINGS = (
    "mkldnn.enabled",
    *(f"mkldnn.{of}.fp32_precision" for of in ("matmul", "conv", "rnn")),
)
_CUDA_SETTINGS = (
    *("cudnn.enabled", "cuda.matmul.fp32_precision"),
    *("cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"),
)


@final
@dataclass(frozen=True, slots=True)
class Decisions:
    """Which forms were chosen for prefixes on this machine, kept in one small file of a store.

    What stands in it is only taken where it keeps the promise that was asked for.
    """

    root: Path

    def find(self, name: str, *, tolerance: float) -> Tuned | None:
        """What was decided under `name`, if its error is within `tolerance`.

        None where nothing was decided, or nothing that can be used.
        """
        with suppress(KeyError, IndexError, TypeError, ValueError, AttributeError, ConfigError):
            kept = tuned_of(self._read()[name])
            bounds = [(kept.error, 0, tolerance), (kept.batch_size, 1, _LARGEST_BATCH)]
            seconds = (kept.seconds_per_sample, kept.plain_seconds_per_sample)
            bounds += [(found, 0, 1e6) for found in seconds if found is not None]
            for trial in kept.decodings:
                bounds += [(n, 0, 1e6) for n in (trial.speedup, trial.error, trial.worst)]
            if kept.form.decoding != "full":
                bounds.append((kept.decodings[-1].worst, 0, tolerance))
            usable = all(type(n) in (int, float) and a <= n <= b for n, a, b in bounds)  # not NaN
            if usable and type(kept.batch_size) is int:
                return replace(kept, error=float(kept.error))
        return None

    def keep(self, name: str, tuned: Tuned) -> None:
        """Record a decision; where nothing can be written it is made again next time."""
        with suppress(OutputError):
            text = json.dumps({**self._read(), name: plain_of(tuned)}, indent=1)
            write_text(self.root / _DECISIONS, text)

    def _read(self) -> dict[str, Any]:
        """All that is recorded; nothing where the file is none, or none that this wrote."""
        with suppress(OSError, ValueError, RecursionError):
            if (self.root / _DECISIONS).stat().st_size <= _MOST_BYTES:
                found = json.loads((self.root / _DECISIONS).read_bytes())
                return found if isinstance(found, dict) else {}
        return {}


def plain_of(tuned: Tuned) -> dict[str, Any]:
    """What was decided, less what was tried on the way, as plain data."""
    return {
        "form": str(tuned.form),
        "error": tuned.error,
        "batch_size": tuned.batch_size,
        "seconds_per_sample": tuned.seconds_per_sample,
        "plain_seconds_per_sample": tuned.plain_seconds_per_sample,
        "decodings": [asdict(trial) for trial in tuned.decodings],
    }


def tuned_of(plain: dict[str, Any]) -> Tuned:
    """What `plain_of` made."""
    seconds = (plain["seconds_per_sample"], plain["plain_seconds_per_sample"])
    decodings = tuple(DecodingTrial(**trial) for trial in plain.get("decodings", ()))
    form = Form.parse(plain["form"])
    if form.decoding != "full" and decodings[-1].decoding != form.decoding:
        raise ValueError(f"{form} was not tried last")
    return Tuned(form, plain["error"], plain["batch_size"], (), *seconds, decodings)


@final
@dataclass(frozen=True)
class Computing:
    """A cut's prefix in the form that was chosen.

    Attributes:
        tuned: the form, its error and the batch size of a pass.
        device: where it runs.
        training: whether plain float32 is computed as in a training step; some kernels (LSTM's)
            give other last bits in evaluation. Only where that makes a difference.
        whole: whether each pass has all of `tuned.batch_size` rows, filled up where there are
            fewer; for kernels that give other last bits for another number of rows.
        exact: whether the rows are to have the bits of the plain loop, so that those computed in
            passes of another size, or by another number of threads, are not taken for them.
        watch: runs while values are computed; one for all that was made from one choice.
    """

    cut: Cut
    tuned: Tuned
    device: torch.device
    _run: Callable[..., tuple[Tensor, ...]]
    training: bool = False
    whole: bool = False
    exact: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    def __call__(self, inputs: Any) -> tuple[Tensor, ...]:
        """The frontier's values of a batch, each `(batch, *shape)`, on the device."""
        tensors = [t.to(self.device) for t in self.cut.prefix.spec.flatten(inputs)]
        with self.watch.running(), torch.set_grad_enabled(self.training):
            return tuple(value.detach() for value in self._run(*tensors))

    @property
    def words(self) -> str:
        """The form and what was measured of it, for people."""
        if isnan(self.tuned.error):
            return f"{self.tuned.form}, as chosen before"
        if self.tuned.form == PLAIN and self.cut.error:
            return f"{PLAIN}, to a relative error of {self.cut.error:.0e} as in the model"
        return str(self.tuned)

    def rows(
        self, samples: Sequence[Any], collate: Callable[[Sequence[Any]], Any]
    ) -> tuple[Tensor, ...]:
        """The values of single samples in one pass, each `(samples, *shape)`."""
        missing = self.tuned.batch_size - len(samples) if self.whole else 0
        values = self(collate([*samples, *[samples[0]] * missing]))
        return tuple(value[: len(samples)] for value in values)

    @property
    def key(self) -> dict[str, str]:
        """What the numbers depend on, besides the samples."""
        parts = {**self.cut.key, "form": str(self.tuned.form), "torch": torch.__version__}
        if self.tuned.form == PLAIN:
            # Bits are promised, and kernels are chosen by what the processor can do.
            device, capability = self.device.type, torch.backends.cpu.get_cpu_capability()
            # The user's settings of kernels; "none" was never set, and means IEEE's float32.
            settings = attrgetter(*(_CUDA_SETTINGS if device == "cuda" else _CPU_SETTINGS))(
                torch.backends
            )
            named = " ".join(str(setting).replace("none", "ieee") for setting in settings)
            parts["kernels"] = f"{device} {capability} {named}"
            if torch.is_autocast_enabled(self.device.type):  # around the caller; forms shut it out
                parts["autocast"] = str(torch.get_autocast_dtype(self.device.type))
        if self.training:
            parts["mode"] = "training"
        if self.whole or self.exact:
            filled = " filled up" if self.whole else ""
            parts["pass"] = f"{self.tuned.batch_size} samples{filled}"
        if self.exact:
            parts["threads"] = str(torch.get_num_threads())
        return parts


@in_turn
def computing(
    cut: Cut,
    samples: Callable[[], Any],
    *,
    precision: PrefixPrecision,
    batch_size: int,
    device: torch.device,
    planned_samples: int | None = None,
    decisions: Decisions | None = None,
) -> Computing:
    """Choose how to compute the prefix of `cut`, by measuring on `samples`.

    Args:
        samples: gives a batch of real inputs, where there is something to measure.
        precision: `"exact"`, `"auto"` or the relative error to allow.
        decisions: what was decided before under the same name is not measured again.
    Raises:
        CutError: the model's frozen tensors are not those that were cut; cut again.
    """
    cut.check_current()
    if not cut.prefix.has_graph or precision == "exact":
        plain = realised_later(cut, Tuned(PLAIN, 0.0, batch_size), device)
        return replace(plain, exact=precision == "exact")
    shapes = " ".join(str(value.shape) for value in cut.frontier.values)
    prefix = f"{cut.key['prefix']} {cut.key['tensors']}"
    name = f"{prefix} {shapes} {precision} on {machine(device)}"
    tolerance = DEFAULT_TOLERANCE if precision == "auto" else precision
    if decisions and (known := decisions.find(name, tolerance=tolerance)):
        # Another run may have had batches of another size.
        return realised_later(cut, replace(known, batch_size=batch_size), device)
    graph = cut.prefix.graph
    assert graph is not None
    tuned, run = tune_and_realise(
        graph,
        [t.to(device) for t in cut.prefix.spec.flatten(samples())],
        precision=precision,
        batch_size=batch_size,
        planned_samples=planned_samples,
    )
    cut.check_current()  # what was measured, and the copies that `run` holds
    if decisions:
        decisions.keep(name, tuned)
    later = realised_later(cut, tuned, device)
    return replace(later, _run=run) if run else later


@in_turn
def in_form(cut: Cut, form: Form, *, batch_size: int, device: torch.device) -> Computing:
    """The prefix in a form that was chosen before.

    Raises:
        CutError: as `computing`.
    """
    cut.check_current()
    return realised_later(cut, Tuned(form, float("nan"), batch_size), device)


def realised_later(cut: Cut, tuned: Tuned, device: torch.device) -> Computing:
    """The prefix in a form, converted when it is first run: where all is stored it never is."""
    if not cut.prefix.has_graph or tuned.form.computing == PLAIN:
        plain = replace(tuned, form=replace(PLAIN, decoding=tuned.form.decoding))
        if plain.form == PLAIN:
            plain = Tuned(PLAIN, 0.0, tuned.batch_size)
        return Computing(cut, plain, device, lambda *given: cut.prefix.run_flat(list(given)))

    @cache
    def realised() -> Realised:
        graph = cut.prefix.graph
        assert graph is not None
        run = realise(graph, tuned.form)
        cut.check_current()  # whose converted copies it holds from now on
        return run

    return Computing(cut, tuned, device, lambda *tensors: realised()(*tensors))


def in_passes_of(compute: Computing, count: int) -> Computing:
    """As `compute`, but every pass is filled up to `count` rows.

    Kernels for few rows may sum in another order, and where they do depends on the number in ways
    that trying some does not show; a pass is short wherever some rows are stored already.
    """
    return replace(compute, tuned=replace(compute.tuned, batch_size=count), whole=True)


def difference_by_size(compute: Computing, inputs: Any, count: int) -> float:
    """The largest relative difference of the first `count` rows where they are a pass of their own.

    Args:
        inputs: a whole batch of samples.
    """
    return _difference(compute(some_rows(inputs, slice(count))), compute(inputs))


def difference_by_place(compute: Computing, inputs: Any) -> float:
    """The largest relative difference of rows that stand elsewhere in a batch; mostly 0.

    Some matrix kernels sum the last rows of a pass in another order than the first, as MKL does
    on AMD for rows of six numbers. A stored row then cannot have the bits of every batch.

    Args:
        inputs: a whole batch of samples.
    """
    whole = compute(inputs)
    turned = torch.arange(len(whole[0])).flip(0)
    found = compute(some_rows(inputs, turned))
    return _difference(tuple(value[turned] for value in found), whole)


def differences(compute: Computing, inputs: Any, last: int) -> list[float]:
    """`difference_by_place`, and where that is 0 `difference_by_size` of the last few samples.

    Args:
        inputs: a whole batch of samples.
        last: samples of a last batch that is smaller; 0 where there is none.
    """
    by_place = difference_by_place(compute, inputs)
    is_asked = last and not by_place
    return [by_place, difference_by_size(compute, inputs, last) if is_asked else 0.0]


def _difference(few: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> float:
    """The largest difference from the same rows of a larger batch, relative to the largest."""
    pairs = [(a, b[: len(a)]) for a, b in zip(few, whole, strict=True)]
    found = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))
        for a, b in pairs
        if not torch.equal(a, b)
    ]
    return max(found, default=0.0)
