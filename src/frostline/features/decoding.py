"""How much of each picture is decoded: tried on some of the user's own, judged by the features."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import final

import xxhash
from torch import Tensor

from frostline.calling import in_turn
from frostline.choices import DecodingName, PrefixPrecision
from frostline.data import ImageSamples, Samples, ordered_map
from frostline.features.computing import Computing, Decisions, realised_later
from frostline.features.keywords import NamedSamples
from frostline.tuning import (
    PLAIN,
    WORTH_SAMPLES,
    DecodingTrial,
    Form,
    Tuned,
    machine,
    relative_error,
    tolerance_of,
)

_TRIED = 8  # pictures, all of which hold the tolerance


def as_decoded(samples: Samples, decoding: DecodingName) -> Samples:
    """Samples of which no more is decoded than that; those that are no plain pictures stay."""
    if isinstance(samples, ImageSamples):
        return samples.decoded(decoding)
    if isinstance(samples, NamedSamples):
        return samples.around(as_decoded(samples.inner, decoding))
    return samples


def probable_decoding(
    samples: ImageSamples, precision: PrefixPrecision, form: str, planned_samples: int
) -> DecodingName:
    """By which `with_decoding` will probably decode, before there is anything to try it on.

    Args:
        form: as it was chosen before; else empty.
    """
    if form:
        return Form.parse(form).decoding
    if tolerance_of(precision) is None or planned_samples < WORTH_SAMPLES:
        return "full"
    return samples.likely_decoding()


def forget_kept(samples: Samples) -> None:
    """Free what an audit kept of pictures whose features are stored now."""
    if isinstance(samples, NamedSamples):
        samples = samples.inner
    if isinstance(samples, ImageSamples):
        samples.forget_kept()


@in_turn
def with_decoding(
    compute: Computing,
    samples: Samples,
    *,
    precision: PrefixPrecision,
    planned_samples: int,
    decisions: Decisions | None = None,
) -> Computing:
    """As `compute`, in a form that decodes no more of pictures than their features need.

    That is the quickest decoding with which each picture tried has features within the tolerance,
    form and decoding together, of those of the model itself by a full decoding. A full one where
    pictures are small, where they are shown in random views or with masks, where few are to be
    computed, and where exactness is asked for.

    Args:
        samples: what is to be computed.
        precision: as for `computing`.
        planned_samples: how many are to be computed.
        decisions: what was decided before for pictures of this content is not measured again.
    """
    tolerance = tolerance_of(precision)
    if tolerance is None or planned_samples < WORTH_SAMPLES:
        return compute
    if not isinstance(samples, ImageSamples) or not (tried := samples.worth_less(_TRIED)):
        return compute
    name = _name(compute, samples, tried, precision)
    if decisions and (known := decisions.find(name, tolerance=tolerance)):
        return replace(compute, tuned=replace(known, batch_size=compute.tuned.batch_size))
    tuned = _Trials(compute, samples, tried, tolerance).quickest()
    compute.cut.check_current()
    if decisions:
        decisions.keep(name, tuned)
    return replace(compute, tuned=tuned)


def _name(
    compute: Computing, samples: ImageSamples, tried: list[int], precision: PrefixPrecision
) -> str:
    contents = xxhash.xxh3_64_hexdigest(b"".join(samples.ids(tried)))
    prefix = f"{compute.cut.key['prefix']} {compute.cut.key['tensors']}"
    shapes = " ".join(str(value.shape) for value in compute.cut.frontier.values)
    of = f"{samples.transform} of pictures {contents}"
    on = machine(compute.device)
    return f"decoding {prefix} {shapes} {precision} {compute.tuned.form} {of} on {on}"


@final
@dataclass(frozen=True, slots=True)
class _Trials:
    """Decodings of a few pictures against a full one: how exact with the form, and how fast."""

    compute: Computing
    samples: ImageSamples
    tried: list[int]
    tolerance: float

    def quickest(self) -> Tuned:
        """What was tuned, with the first decoding that passes, and with all that were tried."""
        tuned, trials = self.compute.tuned, list[DecodingTrial]()
        samples = self.samples.read_anew()  # what was kept takes no time
        whole, full_seconds = _loaded(samples, self.tried)
        plain = realised_later(self.compute.cut, Tuned(PLAIN, 0.0, 1), self.compute.device)
        reference = plain(samples.collate(whole))
        for decoding in self.samples.decodings(self.tried):
            loaded, seconds = _loaded(samples.decoded(decoding), self.tried)
            values = self.compute(samples.collate(loaded))
            errors = _errors(values, reference)
            mean, worst = sum(errors) / len(errors), max(errors)
            speedup = full_seconds / max(seconds, 1e-9)
            trials.append(DecodingTrial(decoding, speedup, mean, worst))
            if worst <= self.tolerance and speedup > 1:
                form = replace(tuned.form, decoding=decoding)
                return replace(tuned, form=form, error=worst, decodings=tuple(trials))
        return replace(tuned, decodings=tuple(trials))


def _loaded(samples: ImageSamples, rows: list[int]) -> tuple[list[Tensor], float]:
    """Pictures, and the seconds of a processor that these took, however busy the machine is."""

    def load(row: int) -> tuple[Tensor, float]:
        start = time.thread_time()
        loaded = samples.load(row)
        return loaded, time.thread_time() - start

    found = list(ordered_map(load, rows, ahead=len(rows)))
    return [tensor for tensor, _ in found], sum(seconds for _, seconds in found)


def _errors(values: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> list[float]:
    """The relative error of each picture; of its worst value, where several cross the line."""
    pairs = [(value, of) for value, of in zip(values, reference, strict=True)]
    return [
        relative_error([value[place] for value, _ in pairs], [of[place] for _, of in pairs])
        for place in range(len(reference[0]))
    ]
