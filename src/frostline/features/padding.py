"""Samples of different lengths: their values without the padding of a batch, and with it again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from frostline.cutting import Cut, FrontierValue
from frostline.cutting.checking import state_kept
from frostline.cutting.structures import flatten_output
from frostline.data import Samples, TensorSamples, lengths_of
from frostline.errors import CutError
from frostline.freezing.modes import modes_kept
from frostline.store import PADS, Pads

_CHECKED = 4  # samples, from the shortest to the longest
_LOOKED_AT = 32  # samples of a data set, put in one batch
_MEASURED = 256  # samples loaded at a time where a data set does not say how long they are
# Above it padding changes what a sample's own positions are; below, kernels sum in another order.
_LARGEST_DIFFERENCE = 1e-4


@final
class PaddingMatters(CutError):  # noqa: N818 - named for what was found
    """Features of padded batches cannot be stored by sample: what they are hangs on the padding."""


Form = tuple[tuple[int | None, ...], ...]  # sizes of a sample's inputs; None: as long as it is


@final
@dataclass(frozen=True)
class Padding:
    """How the samples of a data set, and their values, are padded in its batches.

    Attributes:
        lengths: of the samples, in order; empty where none varies.
        pads: how values are put back as they are in a batch of the plain loop.
        difference: the largest relative difference of a sample's own numbers between a batch with
            longer samples and one without; 0.0 is bit for bit.
        varying: numbers of the inputs in which samples are of different lengths.
        form: of the inputs of all samples that were looked at; None where all must be alike.
    """

    lengths: Sequence[int] = ()
    pads: Pads = PADS
    difference: float = 0.0
    varying: tuple[int, ...] = ()
    form: Form | None = None

    @property
    def varies(self) -> bool:
        """Whether samples are of different lengths."""
        return bool(self.varying)

    def check(self, alone: Sequence[Tensor], samples: Samples) -> None:
        """Make sure that a sample is padded as those were that were tried.

        Raises:
            CutError: an input of it is of another size, which no sample tried was.
        """
        if self.form is not None and _form(_shapes(alone), self.varying) != self.form:
            raise CutError(
                f"inputs of a few samples of {samples.what} are of other sizes than those of the "
                "samples that were tried. Pad all to one length."
            )

    def longest_first(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows so that those of like length are beside each other."""
        if not self.varies:
            return rows
        return sorted(rows, key=lambda row: -self.lengths[row % len(self.lengths)])

    def own(
        self, cut: Cut, values: Sequence[Tensor], alone: Sequence[Sequence[Tensor]]
    ) -> list[Tensor | list[Tensor]]:
        """The values of a padded batch without its padding: of ragged ones a tensor for each row.

        Args:
            alone: each sample's inputs, flat, as a batch of its own.
        """
        return [
            [
                trimmed(row, of.own_shape(each), self.pads)
                for row, each in zip(v, alone, strict=True)
            ]
            if None in of.shape
            else v
            for v, of in zip(values, cut.frontier.values, strict=True)
        ]


def trimmed(row: Tensor, shape: Sequence[int], pads: Pads) -> Tensor:
    """The part of a padded row that has this shape; a view."""
    sizes = zip(row.shape, shape, strict=True)
    return row[tuple(slice(most - n, most) if pads.at_start else slice(n) for most, n in sizes)]


def padded(rows: Sequence[Tensor], pads: Pads, *, fill: float = 0.0) -> Tensor:
    """The rows in one tensor, as long as the longest of them."""
    most = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    whole = torch.full((len(rows), *most), fill, dtype=rows[0].dtype, device=rows[0].device)
    for place, row in zip(whole, rows, strict=True):
        trimmed(place, row.shape, pads).copy_(row)
    return whole


def padding_of(cut: Cut, samples: Samples, device: torch.device) -> Padding:
    """How `samples` are padded, once it is tried that no padding changes what the model gives.

    Inputs of samples alone are compared with those in a batch. Where their sizes differ, some
    samples go through both halves, each beside longer ones and beside its like.

    Raises:
        PaddingMatters: a sample's own values depend on how far its batch is padded, or the part
            that is trained reads what stands at padded places.
        CutError: the model could be followed for one length only, and samples have several.
    """
    lengths: Sequence[int] | None = lengths_of(samples)
    if type(samples).collate in (Samples.collate, TensorSamples.collate):
        return Padding()  # of samples that differ they make no batch
    rows = range(len(samples))
    ends = _spread(sorted(rows, key=lengths.__getitem__), _CHECKED) if lengths else []
    few = sorted({*_spread(rows, _LOOKED_AT), *ends})
    loaded = list(map(samples.load, few))
    whole = _shapes(cut.prefix.spec.flatten(samples.collate(loaded)))
    if cut.varying and lengths is None:
        each = _measured(cut, samples)
        lengths = [max(shapes[number][0] for number in cut.varying) for shapes in each.values()]
        ends = _spread(sorted(rows, key=lengths.__getitem__), _CHECKED)
    else:
        each = {
            row: _shapes(alone(cut, samples.collate, one))
            for row, one in zip(few, loaded, strict=True)
        }
    varying, form = _compared(cut, samples, {*each.values(), whole})
    if not varying:
        return Padding(form=form)
    chosen = set(ends)
    for number in varying:
        chosen.update(_spread(sorted(each, key=lambda row: each[row][number][0]), 2))
    made = _Trial(cut, samples, sorted(chosen), device).padding()
    return replace(made, lengths=lengths or (), varying=varying, form=form)


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """That many of the rows, the first and the last among them."""
    steps = (round(step * (len(rows) - 1) / (count - 1)) for step in range(count))
    return [rows[step] for step in steps]


def _compared(cut: Cut, samples: Samples, found: Collection[Form]) -> tuple[tuple[int, ...], Form]:
    """Numbers of the inputs that vary in length, and the form that all have otherwise."""
    varying = tuple(n for n in cut.varying if len({shapes[n][:1] for shapes in found}) > 1)
    form, *others = {_form(shapes, varying) for shapes in found}
    if others:
        raise CutError(
            f"{type(cut.suffix.model).__name__} can be followed for samples of one length only, "
            f"and {samples.what} has several. Pad all to one length."
        )
    return varying, form


def _shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors)


def _form(shapes: Form, varying: Collection[int]) -> Form:
    return tuple(
        (None, *shape[1:]) if number in varying else shape for number, shape in enumerate(shapes)
    )


def _measured(cut: Cut, samples: Samples) -> dict[int, tuple[tuple[int, ...], ...]]:
    """The shapes of each sample's inputs, by loading it."""
    places = range(len(samples))
    parts = [places[first : first + _MEASURED] for first in places[::_MEASURED]]
    found: list[tuple[tuple[int, ...], ...]] = []
    with closing(samples.in_batches(parts)) as loading:
        for loaded in loading:
            found += [_shapes(alone(cut, samples.collate, one)) for one in loaded]
    return dict(enumerate(found))


def alone(cut: Cut, collate: Callable[[Sequence[Any]], Any], sample: Any) -> list[Tensor]:
    """A sample's inputs as a batch of its own, flat: as long as it is, or as it is padded alone."""
    return cut.prefix.spec.flatten(collate([sample]))


class _Trial:
    """Some samples of different lengths, in one batch and each by itself."""

    def __init__(
        self, cut: Cut, samples: Samples, chosen: Sequence[int], device: torch.device
    ) -> None:
        self._cut, self._device = cut, device
        loaded, flatten = list(map(samples.load, chosen)), cut.prefix.spec.flatten
        self._whole = flatten(samples.collate(loaded))
        self._each = [flatten(samples.collate([one, one])) for one in loaded]

    def padding(self) -> Padding:
        """As `padding_of`."""
        pads = Pads(at_start=self._at_start())
        with state_kept(self._model), modes_kept(self._model), torch.no_grad():
            whole = self._values(self._whole)
            each = [self._values(tensors) for tensors in self._each]
            own = list(map(partial(self._own, pads=pads), self._cut.frontier.values, whole))
            self._check_shapes(whole, each, own)
            below = max(
                _difference(row, values[number][0])
                for number, rows in enumerate(own)
                for row, values in zip(rows, each, strict=True)
            )
            self._check_places(own, each, pads)
            self._check(below, "what is frozen gives them other values in a longer batch")
            fills = tuple(map(partial(_fill, pads=pads), whole, own))
            again = [padded(rows, pads, fill=fill) for rows, fill in zip(own, fills, strict=True)]
            above = self._difference_above(again, each, pads)
            self._check(above, "what is trained reads the places that are padded")
        return Padding(pads=Pads(fills, pads.at_start), difference=max(below, above))

    def _own(self, of: FrontierValue, value: Tensor, *, pads: Pads) -> list[Tensor]:
        """Each row without its padding, as far as the batch is long."""
        shapes = map(of.own_shape, self._each)
        return [trimmed(row, shape, pads) for row, shape in zip(value, shapes, strict=True)]

    @property
    def _model(self) -> torch.nn.Module:
        return self._cut.suffix.model

    def _values(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self._cut.prefix.run_flat([tensor.to(self._device) for tensor in tensors])

    def _check(self, difference: float, what: str) -> None:
        kinds = [value.dtype for value in self._cut.frontier.values]
        last_bits = max((torch.finfo(k).eps for k in kinds if k.is_floating_point), default=0.0)
        if not difference <= max(_LARGEST_DIFFERENCE, 4 * last_bits):  # bfloat16 has 8 bits
            raise PaddingMatters(
                f"for samples of different lengths no features are stored, since {what} (relative "
                f"difference {difference:.1g}); give {type(self._model).__name__} an attention "
                "mask that it heeds, or samples of one length"
            )

    def _check_places(
        self, own: Sequence[list[Tensor]], each: Sequence[Sequence[Tensor]], pads: Pads
    ) -> None:
        """No value counts places from where the batch begins, before which a sample is padded."""
        for of, rows, values in zip(
            self._cut.frontier.values, own, zip(*each, strict=True), strict=True
        ):
            if not pads.at_start or of.dtype.is_floating_point or of.dtype == torch.bool:
                continue
            moved = [row - value[0] for row, value in zip(rows, values, strict=True)]
            if any(map(torch.any, moved)) and all(map(_is_as, moved, self._padded())):
                raise PaddingMatters(
                    f"for samples of different lengths no features are stored, since {of.name} is "
                    "a place in the batch, and what is padded before a sample moves it; pad behind "
                    "the samples, as a tokenizer does with padding_side='right', or give samples "
                    "of one length"
                )

    def _padded(self) -> Iterator[int]:
        """How many places are padded to each sample."""
        number = next(iter(self._cut.varying))
        for tensors in self._each:
            yield self._whole[number].shape[1] - tensors[number].shape[1]

    def _at_start(self) -> bool:
        """Whether the padding stands before the samples.

        Raises:
            PaddingMatters: neither before nor behind them.
        """
        for at_start in (False, True):
            pads = Pads(at_start=at_start)
            if all(
                torch.equal(
                    trimmed(self._whole[number][place], tensors[number][0].shape, pads), one
                )
                for number in self._cut.varying
                for place, tensors in enumerate(self._each)
                for one in tensors[number][:1]
            ):
                return at_start
        raise PaddingMatters(
            "for samples of different lengths no features are stored, since a sample in a batch "
            "is not the sample alone with padding before or behind it; give a collate that pads"
        )

    def _check_shapes(
        self,
        whole: Sequence[Tensor],
        each: Sequence[Sequence[Tensor]],
        own: Sequence[Sequence[Tensor]],
    ) -> None:
        """A value alone is as long as was worked out, and a batch as long as its longest."""
        for number, (value, rows) in enumerate(zip(whole, own, strict=True)):
            shapes = [row.shape for row in rows]
            longest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
            found = [values[number].shape[1:] for values in each]
            if found != shapes or tuple(value.shape[1:]) != longest:
                name = self._cut.frontier.values[number].name
                raise PaddingMatters(
                    f"for samples of different lengths no features are stored, since {name} is "
                    f"{tuple(value.shape[1:])} long in a batch whose longest sample has {longest}"
                )

    def _difference_above(
        self, again: Sequence[Tensor], each: Sequence[Sequence[Tensor]], pads: Pads
    ) -> float:
        """Of the suffix's outputs for values padded again from the model's own, in both modes.

        Places of an output that are as many as the sample is long are compared where they are its
        own: what stands at the others is read by nobody who heeds the mask.
        """
        self._model.eval()
        shapes = [
            [output.shape[1:] for output in self._outputs(partial(self._cut.suffix, *values))]
            for values in each
        ]
        found = []
        for training in (True, False):
            self._model.train(training)
            inputs = [tensor.to(self._device) for tensor in self._whole]
            plain = self._outputs(partial(self._cut.prefix.spec.call, self._model, inputs))
            cut = self._outputs(partial(self._cut.suffix, *again))
            for one, other, *of in zip(plain, cut, *shapes, strict=True):
                if one.dim() == 0:  # of the whole batch, as its loss
                    found.append(_difference(other, one))
                    continue
                for a, b, shape in zip(one, other, of, strict=True):
                    found.append(_difference(trimmed(b, shape, pads), trimmed(a, shape, pads)))
        return max(found, default=0.0)

    def _outputs(self, forward: Callable[[], Any]) -> list[Tensor]:
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            return flatten_output(forward())[0]


def _is_as(moved: Tensor, padded: int) -> bool:
    return bool((moved == padded).all())


def _fill(value: Tensor, own: Sequence[Tensor], *, pads: Pads) -> float:
    """The one number that stands at all padded places of a value, or 0."""
    blank = torch.ones_like(value, dtype=torch.bool)
    for row, found in zip(blank, own, strict=True):
        trimmed(row, found.shape, pads).fill_(value=False)
    numbers = value[blank]
    return float(numbers[0]) if len(numbers) and bool((numbers == numbers[0]).all()) else 0.0


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two values, relative to the largest number; 0.0 is bit for bit."""
    if torch.equal(one, other):
        return 0.0
    if not one.is_floating_point():
        return float("inf")
    largest = other.double().abs().max().clamp(min=1e-300)
    found = float((one.double() - other.double()).abs().max() / largest)
    return found if found == found else float("inf")
