"""Pooling: the place in the window of each maximum; nothing for an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.backward.recomputing import Remake, keeping, layout_only
from frostline.backward.tensors import MemoryLayout, Rules, Settings, is_spared

Sizes = int | Sequence[int]
_aten = torch.ops.aten


def average(
    run: Callable[..., Tensor], settings: Settings, input: Tensor, *rest: Any, **named: Any
) -> Tensor | None:
    """`torch.nn.functional.avg_pool2d`, `adaptive_avg_pool2d` and so on."""
    if not is_spared(input, settings):
        return None
    return keeping(lambda: run(input, *rest, **named), layout_only)


def maximum(
    run: Callable[..., Tensor],
    dims: int,
    settings: Settings,
    input: Tensor,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    """`torch.nn.functional.max_pool2d` and so on: a place is told from its window's first."""
    windows = _windows(dims, input, *rest, **named)
    if windows is None or not is_spared(input, settings):
        return None
    # Both cut to their lowest bits: the difference fits, so it is right, and quick.
    small = _integer(windows.span())

    def choose(kept: Tensor) -> Remake:
        if kept.is_floating_point():
            return layout_only(kept)
        places = kept.to(small).sub_(windows.corners(kept).to(small))
        return Remake(
            lambda places: places.long().add_(windows.corners(places)),
            (places,),
            MemoryLayout(kept),
        )

    return keeping(lambda: run(input, *rest, **named), choose)


def adaptive_maximum(
    run: Callable[..., Tensor],
    dims: int,
    settings: Settings,
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.adaptive_max_pool2d` and so on, whose windows differ in size."""
    if return_indices or not is_spared(input, settings):
        return None
    small = _integer(input.shape[-dims:].numel() - 1)

    def choose(kept: Tensor) -> Remake:
        if kept.is_floating_point():
            return layout_only(kept)
        return Remake(Tensor.long, (kept.to(small),), MemoryLayout(kept))

    return keeping(lambda: run(input, output_size), choose)


_AVERAGES = (
    *(torch.avg_pool1d, _aten.avg_pool1d.default),
    *(F.avg_pool2d, _aten.avg_pool2d.default),
    *(F.avg_pool3d, _aten.avg_pool3d.default),
    *(F.adaptive_avg_pool2d, _aten.adaptive_avg_pool2d.default),
    *(F.adaptive_avg_pool3d, _aten.adaptive_avg_pool3d.default),
)
_MAXIMA = (
    (torch.max_pool1d, F.max_pool1d, _aten.max_pool1d.default),
    (torch.max_pool2d, F.max_pool2d, _aten.max_pool2d.default),
    (torch.max_pool3d, F.max_pool3d, _aten.max_pool3d.default),
)
_ADAPTIVE_MAXIMA = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
RULES: Rules = {
    **{run: partial(average, run) for run in _AVERAGES},
    **{run: partial(maximum, run, n) for n, names in enumerate(_MAXIMA, 1) for run in names},
    **{run: partial(adaptive_maximum, run, n) for n, run in enumerate(_ADAPTIVE_MAXIMA, 1)},
}


@final
@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows of a pool, a number for each dimension; `sizes` are the input's."""

    sizes: Sequence[int]
    lengths: list[int]
    steps: list[int]
    paddings: list[int]
    dilations: list[int]

    def corners(self, output: Tensor) -> Tensor:
        """The index in the input of each window's first place; below zero where it is padding."""
        corners = torch.zeros((), dtype=torch.int64, device=output.device)
        places = output.shape[-len(self.sizes) :]
        along = zip(places, self.sizes, self.steps, self.paddings, strict=True)
        for count, size, step, padding in along:
            first = torch.arange(count, device=output.device) * step - padding
            corners = corners.unsqueeze(-1) * size + first
        return corners

    def span(self) -> int:
        """How far a place can be from its window's first."""
        span = 0
        for size, length, dilation in zip(self.sizes, self.lengths, self.dilations, strict=True):
            span = span * size + (length - 1) * dilation
        return span


def _windows(
    dims: int,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Windows | None:
    """As the pool reads what it is given; None where it gives the places to its caller."""
    del ceil_mode
    if return_indices:
        return None
    steps = kernel_size if stride is None or stride == [] or stride == () else stride
    given = (kernel_size, steps, padding, dilation)
    return _Windows(input.shape[-dims:], *(_each(sizes, dims) for sizes in given))


def _each(given: Sizes, dims: int) -> list[int]:
    if isinstance(given, int):
        return [given] * dims
    return [*given] if len(given) == dims else [given[0]] * dims


def _integer(furthest: int) -> torch.dtype:
    """The smallest type that holds it."""
    if furthest < 2**8:
        return torch.uint8
    return torch.int16 if furthest < 2**15 else torch.int32 if furthest < 2**31 else torch.int64
