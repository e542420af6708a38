"""Convolutions whose weight is frozen keep no input; all others PyTorch does as well as can be.

What such a one makes of a smaller input that wants no gradient, as a first layer does of a batch,
can be computed from it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from frostline.backward.recomputing import is_cheap, note, products_of
from frostline.backward.settings import Settings
from frostline.backward.tensors import Layout, is_cast, is_ordinary, is_worth, wants

Sizes = int | Sequence[int]
_aten = torch.ops.aten


def conv(
    settings: Settings,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor | None:
    """`torch.conv1d`, `conv2d`, `conv3d`."""
    if not _may(settings, input, weight, bias):
        return None
    dims = weight.dim() - 2
    dilations = _each(dilation, dims)
    paddings = _paddings(padding, dilations, weight)
    if paddings is None:
        return None
    shape = (_each(stride, dims), paddings, dilations, False, [0] * dims, groups)
    return _run(input, weight, bias, shape)


def conv_transpose(
    settings: Settings,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor | None:
    """`torch.conv_transpose1d`, `2d`, `3d`."""
    if not _may(settings, input, weight, bias):
        return None
    each = [_each(given, weight.dim() - 2) for given in (stride, padding, dilation, output_padding)]
    shape = (each[0], each[1], each[2], True, each[3], groups)
    return _run(input, weight, bias, shape)


def convolution(
    settings: Settings,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Tensor | None:
    """`torch.convolution`."""
    if transposed:
        given = (stride, padding, output_padding, groups, dilation)
        return conv_transpose(settings, input, weight, bias, *given)
    return conv(settings, input, weight, bias, stride, padding, dilation, groups)


RULES: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: conv,
    torch.conv2d: conv,
    torch.conv3d: conv,
    torch.conv_transpose1d: conv_transpose,
    torch.conv_transpose2d: conv_transpose,
    torch.conv_transpose3d: conv_transpose,
    torch.convolution: convolution,
    _aten.conv1d.default: conv,
    _aten.conv2d.default: conv,
    _aten.conv3d.default: conv,
    _aten.conv1d.padding: conv,
    _aten.conv2d.padding: conv,
    _aten.conv3d.padding: conv,
    _aten.conv_transpose1d.default: conv_transpose,
    _aten.conv_transpose2d.input: conv_transpose,
    _aten.conv_transpose3d.input: conv_transpose,
    _aten.convolution.default: convolution,
}


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout = Layout(input)
        ctx.shape = shape
        output: Tensor = torch.convolution(input, weight, bias, *shape)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]]
        channels = grads[0].shape[1]
        shape: tuple[Any, ...] = ctx.shape
        input_grad, _, bias_grad = _aten.convolution_backward.default(
            grads[0], ctx.layout.stand_in(), weight, [channels], *shape, wanted
        )
        return input_grad, None, bias_grad, None


def _may(settings: Settings, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        not wants(weight)
        and is_ordinary(input, weight, bias)
        and input.dim() == weight.dim() > 2
        and is_worth(input, settings)
    )


def _run(
    input: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...]
) -> Tensor | None:
    if not wants(input) and not wants(bias):
        return None if is_cast(input) else _made_of_the_batch(input, weight, bias, shape)
    if is_cast(input):
        # As autocast does it: the casts are part of the graph.
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = _to(input, dtype), _to(weight, dtype)
        bias = None if bias is None else _to(bias, dtype)
    output: Tensor = _Convolution.apply(input, weight, bias, shape)
    return output


def _made_of_the_batch(
    input: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...]
) -> Tensor:
    """A frozen layer on what wants no gradient: a norm behind keeps the input, if it is smaller.

    It is not kept for that alone, or a frozen prefix would hold the inputs of many layers at once.
    """
    output: Tensor = torch.convolution(input, weight, bias, *shape)
    if input.nbytes < output.nbytes and is_cheap(products_of(output, weight)):
        given = (weight,) if bias is None else (weight, bias)
        note(output, partial(_convolved, shape), weakref.ref(input), *given)
    return output


def _convolved(
    shape: tuple[Any, ...], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return torch.convolution(input, weight, bias, *shape)


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.to(dtype)


def _each(given: Sizes, dims: int) -> list[int]:
    if isinstance(given, int):
        return [given] * dims
    return [*given] if len(given) == dims else [given[0]] * dims


def _paddings(padding: Sizes | str, dilations: list[int], weight: Tensor) -> list[int] | None:
    if not isinstance(padding, str):
        return _each(padding, len(dilations))
    if padding == "valid":
        return [0] * len(dilations)
    totals = [d * (size - 1) for d, size in zip(dilations, weight.shape[2:], strict=True)]
    # PyTorch pads the input by hand where the two sides differ.
    return None if any(total % 2 for total in totals) else [total // 2 for total in totals]
