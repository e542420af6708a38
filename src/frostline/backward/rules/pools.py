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
from frostline.backward.tensors import Layout, Rules, Settings, is_spared

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
    return keeping(lambda: run(input, *rest, **named), windows.choose)


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
    sizes, none = [*input.shape[-dims:]], [0] * dims
    whole = _Windows(sizes, sizes, none, none, [1] * dims)  # told from the input's first place
    return keeping(lambda: run(input, output_size), whole.choose)


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

    def choose(self, kept: Tensor) -> Remake:
        """For `keeping`: places from each window's first, in the smallest type that holds them."""
        if kept.is_floating_point():
            return layout_only(kept)
        span = 0
        for size, length, dilation in zip(self.sizes, self.lengths, self.dilations, strict=True):
            span = span * size + (length - 1) * dilation
        types = (torch.uint8, torch.int16, torch.int32)
        small = next((t for t in types if span <= torch.iinfo(t).max), torch.int64)
        # Both cut to their lowest bits: the difference fits, so it is right, and quick.
        places = kept.to(small).sub_(self.corners(kept).to(small))
        return Remake(lambda p: p.long().add_(self.corners(p)), (places,), Layout(kept))

    def corners(self, output: Tensor) -> Tensor:
        """The index in the input of each window's first place; below zero where it is padding."""
        corners = torch.zeros((), dtype=torch.int64, device=output.device)
        places = output.shape[-len(self.sizes) :]
        along = zip(places, self.sizes, self.steps, self.paddings, strict=True)
        for count, size, step, padding in along:
            first = torch.arange(count, device=output.device) * step - padding
            corners = corners.unsqueeze(-1) * size + first
        return corners


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
