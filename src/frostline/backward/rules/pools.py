"""Pooling: the place in the window of each maximum; nothing for an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.settings import Settings
from frostline.backward.tensors import Layout, is_cast, is_spared

Sizes = int | Sequence[int]
_aten = torch.ops.aten
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
_ADAPTIVE = {
    2: (_aten._adaptive_avg_pool2d.default, _aten._adaptive_avg_pool2d_backward.default),
    3: (_aten._adaptive_avg_pool3d.default, _aten._adaptive_avg_pool3d_backward.default),
}


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
    kernel = _each(kernel_size, dims)
    steps = _steps(stride, kernel)
    shape: list[Any] = [kernel, steps, _each(padding, dims), _each(dilation, dims), ceil_mode]
    if dims == 1:
        shape = [[1, kernel[0]], [1, steps[0]], [0, shape[2][0]], [1, shape[3][0]], ceil_mode]
        lifted: Tensor = _MaxPool.apply(input.unsqueeze(-2), shape)
        return lifted.squeeze(-2)
    output: Tensor = _MaxPool.apply(input, shape)
    return output


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
    """`torch.nn.functional.avg_pool2d`, `avg_pool3d`."""
    if not _gains(settings, input, dims):
        return None
    kernel = _each(kernel_size, dims)
    steps = _steps(stride, kernel)
    given = (kernel, steps, _each(padding, dims), ceil_mode, count_include_pad, divisor_override)
    output: Tensor = _Average.apply(input, _AVERAGE[dims], given)
    return output


def avg_pool1d(
    settings: Settings,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor | None:
    """`torch.nn.functional.avg_pool1d`: one row of two dimensions, as in PyTorch."""
    if not _gains(settings, input, 1):
        return None
    kernel, padding = _each(kernel_size, 1), _each(padding, 1)
    given = (
        [1, *kernel],
        [1, *_steps(stride, kernel)],
        [0, *padding],
        ceil_mode,
        count_include_pad,
    )
    lifted = avg_pool(2, settings, input.unsqueeze(-2), *given)
    return None if lifted is None else lifted.squeeze(-2)


def adaptive_max_pool(
    dims: int,
    settings: Settings,
    input: Tensor,
    output_size: Sizes,
    return_indices: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.adaptive_max_pool1d`, `2d`, `3d`."""
    if return_indices or not _gains(settings, input, dims):
        return None
    places = _places(output_size, input, dims)
    if dims > 1:
        output: Tensor = _AdaptiveMax.apply(input, places)
        return output
    lifted: Tensor = _AdaptiveMax.apply(input.unsqueeze(-2), [1, *places])
    return lifted.squeeze(-2)


def adaptive_avg_pool(
    dims: int, settings: Settings, input: Tensor, output_size: Sizes
) -> Tensor | None:
    """`torch.nn.functional.adaptive_avg_pool2d`, `3d`; to one place PyTorch takes a mean."""
    if not _gains(settings, input, dims):
        return None
    places = _places(output_size, input, dims)
    if all(place == 1 for place in places):
        return None
    output: Tensor = _Average.apply(input, _ADAPTIVE[dims], (places,))
    return output


RULES: dict[Any, Callable[..., Tensor | None]] = {
    torch.max_pool1d: partial(max_pool, 1),
    torch.max_pool2d: partial(max_pool, 2),
    torch.max_pool3d: partial(max_pool, 3),
    F.max_pool1d: partial(max_pool, 1),
    F.max_pool2d: partial(max_pool, 2),
    F.max_pool3d: partial(max_pool, 3),
    _aten.max_pool1d.default: partial(max_pool, 1),
    _aten.max_pool2d.default: partial(max_pool, 2),
    _aten.max_pool3d.default: partial(max_pool, 3),
    torch.avg_pool1d: avg_pool1d,
    _aten.avg_pool1d.default: avg_pool1d,
    F.adaptive_max_pool1d: partial(adaptive_max_pool, 1),
    F.adaptive_max_pool2d: partial(adaptive_max_pool, 2),
    F.adaptive_max_pool3d: partial(adaptive_max_pool, 3),
    F.avg_pool2d: partial(avg_pool, 2),
    F.avg_pool3d: partial(avg_pool, 3),
    _aten.avg_pool2d.default: partial(avg_pool, 2),
    _aten.avg_pool3d.default: partial(avg_pool, 3),
    F.adaptive_avg_pool2d: partial(adaptive_avg_pool, 2),
    F.adaptive_avg_pool3d: partial(adaptive_avg_pool, 3),
    _aten.adaptive_avg_pool2d.default: partial(adaptive_avg_pool, 2),
    _aten.adaptive_avg_pool3d.default: partial(adaptive_avg_pool, 3),
}


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, shape: list[Any]) -> Tensor:
        dims = len(shape[0])
        output: Tensor
        output, indices = _MAX[dims][0](input, *shape)
        ctx.layout = Layout(input)
        ctx.shape = shape
        small = _smallest(shape, ctx.layout)
        # Both cut to their lowest bits: the difference fits, so it is right, and quick.
        corners = _corners(shape, ctx.layout, output).to(small)
        ctx.save_for_backward(indices.to(small).sub_(corners))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        shape: list[Any] = ctx.shape
        indices = places.long().add_(_corners(shape, ctx.layout, places))
        back = _MAX[len(shape[0])][1]
        return back(grads[0], ctx.layout.stand_in(), *shape, indices), None


class _Average(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, kernels: Any, given: tuple[Any, ...]) -> Tensor:
        ctx.layout = Layout(input)
        ctx.back = kernels[1]
        ctx.given = given
        output: Tensor = kernels[0](input, *given)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        given = () if len(ctx.given) == 1 else ctx.given
        return ctx.back(grads[0], ctx.layout.stand_in(), *given), None, None


class _AdaptiveMax(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, places: list[int]) -> Tensor:
        run = _ADAPTIVE_MAX[len(places)][0]
        output: Tensor
        output, indices = run(input, places)
        ctx.layout = Layout(input)
        ctx.dims = len(places)
        window = torch.Size(input.shape[-len(places) :]).numel()
        ctx.save_for_backward(indices.to(_integer(window - 1)))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        back = _ADAPTIVE_MAX[ctx.dims][1]
        return back(grads[0], ctx.layout.stand_in(), indices.long()), None


def _places(asked: Any, input: Tensor, dims: int) -> list[int]:
    """Of an adaptive pool; None is as many as there are."""
    sizes = [asked] * dims if isinstance(asked, int) or asked is None else [*asked]
    own = input.shape[-dims:]
    return [n if size is None else size for size, n in zip(sizes, own, strict=True)]


def _gains(settings: Settings, input: Tensor, dims: int) -> bool:
    return (
        is_spared(input, settings)
        and input.dim() in (dims + 1, dims + 2)
        and not (dims == 3 and is_cast(input))  # which autocast would cast
    )


def _corners(shape: list[Any], layout: Layout, output: Tensor) -> Tensor:
    """The index in the input of each window's first place; below zero where that is padding."""
    kernel, steps, paddings = shape[:3]
    sizes = layout.sizes[-len(kernel) :]
    corners = torch.zeros((), dtype=torch.int64, device=layout.device)
    for dim, (step, padding) in enumerate(zip(steps, paddings, strict=True)):
        places = output.shape[dim - len(kernel)]
        first = torch.arange(places, device=layout.device) * step - padding
        corners = corners.unsqueeze(-1) * sizes[dim] + first
    return corners


def _smallest(shape: list[Any], layout: Layout) -> torch.dtype:
    """The smallest type that holds how far a place can be from its window's first."""
    kernel = shape[0]
    return _integer(_span(kernel, shape[3], layout.sizes[-len(kernel) :]))


def _integer(furthest: int) -> torch.dtype:
    if furthest < 2**8:
        return torch.uint8
    return torch.int16 if furthest < 2**15 else torch.int32 if furthest < 2**31 else torch.int64


def _span(kernel: list[int], dilations: list[int], sizes: Sequence[int]) -> int:
    span = 0
    for length, dilation, size in zip(kernel, dilations, sizes, strict=True):
        span = span * size + (length - 1) * dilation
    return span


def _steps(stride: Sizes | None, kernel: list[int]) -> list[int]:
    """A window's width apart, where nothing else is said."""
    return kernel if stride is None or stride == [] or stride == () else _each(stride, len(kernel))


def _each(given: Sizes, dims: int) -> list[int]:
    if isinstance(given, int):
        return [given] * dims
    return [*given] if len(given) == dims else [given[0]] * dims
