"""Pooling: the place in the window of each maximum; nothing for an average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.tensors import (
    MemoryLayout,
    Rules,
    Settings,
    Sizes,
    each,
    is_cast,
    is_spared,
)

_aten = torch.ops.aten


def max_pool(
    dims: int,
    settings: Settings,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.max_pool1d`, `max_pool2d`, `max_pool3d`."""
    if return_indices or not _gains(settings, input, dims):
        return None
    given = (*_windows(dims, kernel_size, stride, padding), _lifted(dilation, dims), ceil_mode)
    return _pooled(_Max, dims, input, _MAX, given)


def avg_pool(
    dims: int,
    settings: Settings,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    """`torch.nn.functional.avg_pool1d`, `avg_pool2d`, `avg_pool3d`."""
    if not _gains(settings, input, dims):
        return None
    windows = _windows(dims, kernel_size, stride, padding)
    given = (*windows, ceil_mode, count_include_pad, divisor_override)
    return _pooled(_Average, dims, input, _AVERAGE, given)


def adaptive_max_pool(
    dims: int,
    settings: Settings,
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.adaptive_max_pool1d`, `2d`, `3d`."""
    if return_indices or not _gains(settings, input, dims):
        return None
    places = _lifted(_places(output_size, input, dims), dims)
    return _pooled(_Max, dims, input, _ADAPTIVE_MAX, (places,))


def adaptive_avg_pool(
    dims: int, settings: Settings, input: Tensor, output_size: Any
) -> Tensor | None:
    """`torch.nn.functional.adaptive_avg_pool2d`, `3d`; to one place PyTorch takes a mean."""
    if not _gains(settings, input, dims):
        return None
    places = _places(output_size, input, dims)
    if all(place == 1 for place in places):
        return None
    return _pooled(_Average, dims, input, _ADAPTIVE_AVERAGE, (places,))


# Forward and backward kernel by the number of dimensions; PyTorch lifts one to two as well.
_MAX = {
    2: (_aten.max_pool2d_with_indices.default, _aten.max_pool2d_with_indices_backward.default),
    3: (_aten.max_pool3d_with_indices.default, _aten.max_pool3d_with_indices_backward.default),
}
_AVERAGE = {
    2: (_aten.avg_pool2d.default, _aten.avg_pool2d_backward.default),
    3: (_aten.avg_pool3d.default, _aten.avg_pool3d_backward.default),
}
_ADAPTIVE_MAX = {
    2: (_aten.adaptive_max_pool2d.default, _aten.adaptive_max_pool2d_backward.default),
    3: (_aten.adaptive_max_pool3d.default, _aten.adaptive_max_pool3d_backward.default),
}
_ADAPTIVE_AVERAGE = {
    2: (_aten._adaptive_avg_pool2d.default, _aten._adaptive_avg_pool2d_backward.default),
    3: (_aten._adaptive_avg_pool3d.default, _aten._adaptive_avg_pool3d_backward.default),
}
_NAMES: dict[Any, list[tuple[Any, ...]]] = {  # by rule, of 1, 2 and 3 dimensions
    max_pool: [
        (torch.max_pool1d, F.max_pool1d, _aten.max_pool1d.default),
        (torch.max_pool2d, F.max_pool2d, _aten.max_pool2d.default),
        (torch.max_pool3d, F.max_pool3d, _aten.max_pool3d.default),
    ],
    avg_pool: [
        (torch.avg_pool1d, _aten.avg_pool1d.default),
        (F.avg_pool2d, _aten.avg_pool2d.default),
        (F.avg_pool3d, _aten.avg_pool3d.default),
    ],
    adaptive_max_pool: [
        (F.adaptive_max_pool1d,),
        (F.adaptive_max_pool2d,),
        (F.adaptive_max_pool3d,),
    ],
    adaptive_avg_pool: [
        (),
        (F.adaptive_avg_pool2d, _aten.adaptive_avg_pool2d.default),
        (F.adaptive_avg_pool3d, _aten.adaptive_avg_pool3d.default),
    ],
}
RULES: Rules = {
    operation: partial(rule, dims)
    for rule, names in _NAMES.items()
    for dims, operations in enumerate(names, 1)
    for operation in operations
}


class _Max(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, kernels: Any, given: tuple[Any, ...]) -> Tensor:
        run, ctx.back = kernels
        output: Tensor
        output, indices = run(input, *given)
        ctx.layout = MemoryLayout(input)
        ctx.windows = given if len(given) > 1 else ()  # an adaptive pool's differ in size
        if ctx.windows:
            # Both cut to their lowest bits: the difference fits, so it is right, and quick.
            small = _integer(_span(ctx.windows, ctx.layout))
            indices = indices.to(small).sub_(_corners(ctx.windows, ctx.layout, output).to(small))
        else:
            window = ctx.layout.sizes[-len(given[0]) :].numel()
            indices = indices.to(_integer(window - 1))
        ctx.save_for_backward(indices)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        indices = places.long()
        if ctx.windows:
            indices.add_(_corners(ctx.windows, ctx.layout, places))
        return ctx.back(grads[0], ctx.layout.stand_in(), *ctx.windows, indices), None, None


class _Average(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, kernels: Any, given: tuple[Any, ...]) -> Tensor:
        run, ctx.back = kernels
        ctx.layout = MemoryLayout(input)
        ctx.windows = given if len(given) > 1 else ()
        output: Tensor = run(input, *given)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.back(grads[0], ctx.layout.stand_in(), *ctx.windows), None, None


def _gains(settings: Settings, input: Tensor, dims: int) -> bool:
    return (
        is_spared(input, settings)
        and input.dim() in (dims + 1, dims + 2)
        and not (dims == 3 and is_cast(input))  # which autocast would cast
    )


def _pooled(
    function: type[Function],
    dims: int,
    input: Tensor,
    kernels: dict[int, Any],
    given: tuple[Any, ...],
) -> Tensor:
    output: Tensor
    if dims > 1:
        output = function.apply(input, kernels[dims], given)
        return output
    output = function.apply(input.unsqueeze(-2), kernels[2], given)
    return output.squeeze(-2)


def _lifted(given: Sizes, dims: int, first: int = 1) -> list[int]:
    """One number for each dimension, and `first` before a single one."""
    sizes = each(given, dims)
    return [first, *sizes] if dims == 1 else sizes


def _windows(
    dims: int, kernel: Sizes, stride: Sizes | None, padding: Sizes
) -> tuple[list[int], list[int], list[int]]:
    """Length, step and padding of each; a length apart where no step is given."""
    steps = kernel if stride is None or stride == [] or stride == () else stride
    return _lifted(kernel, dims), _lifted(steps, dims), _lifted(padding, dims, first=0)


def _places(asked: Any, input: Tensor, dims: int) -> list[int]:
    """Of an adaptive pool; None is as many as there are."""
    sizes = [asked] * dims if isinstance(asked, int) or asked is None else [*asked]
    own = input.shape[-dims:]
    return [n if size is None else size for size, n in zip(sizes, own, strict=True)]


def _corners(windows: tuple[Any, ...], layout: MemoryLayout, output: Tensor) -> Tensor:
    """The index in the input of each window's first place; below zero where that is padding."""
    kernel, steps, paddings = windows[:3]
    sizes = layout.sizes[-len(kernel) :]
    corners = torch.zeros((), dtype=torch.int64, device=layout.device)
    for dim, (step, padding) in enumerate(zip(steps, paddings, strict=True)):
        places = output.shape[dim - len(kernel)]
        first = torch.arange(places, device=layout.device) * step - padding
        corners = corners.unsqueeze(-1) * sizes[dim] + first
    return corners


def _span(windows: tuple[Any, ...], layout: MemoryLayout) -> int:
    """How far a place can be from its window's first."""
    kernel, dilations, span = windows[0], windows[3], 0
    sizes: Sequence[int] = layout.sizes[-len(kernel) :]
    for length, dilation, size in zip(kernel, dilations, sizes, strict=True):
        span = span * size + (length - 1) * dilation
    return span


def _integer(furthest: int) -> torch.dtype:
    """The smallest type that holds it."""
    if furthest < 2**8:
        return torch.uint8
    return torch.int16 if furthest < 2**15 else torch.int32 if furthest < 2**31 else torch.int64
