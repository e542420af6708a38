"""Convolutions whose weight is frozen keep no input; all others PyTorch does as well as can be.

What such a one makes of a smaller input that wants no gradient, as a first layer does of a batch,
can be computed from it again.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from frostline.backward.recomputing import is_cheap, note, products_of
from frostline.backward.tensors import (
    MemoryLayout,
    Rules,
    Settings,
    Sizes,
    each,
    is_cast,
    is_large,
    is_ordinary,
    wants,
)

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
    dilations = each(dilation, dims)
    paddings = _paddings(padding, dilations, weight)
    if paddings is None:
        return None
    shape = (each(stride, dims), paddings, dilations, False, [0] * dims, groups)
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
    given = (stride, padding, dilation, output_padding)
    *windows, added = [each(sizes, weight.dim() - 2) for sizes in given]
    return _run(input, weight, bias, (*windows, True, added, groups))


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


RULES: Rules = {
    **dict.fromkeys((torch.conv1d, _aten.conv1d.default, _aten.conv1d.padding), conv),
    **dict.fromkeys((torch.conv2d, _aten.conv2d.default, _aten.conv2d.padding), conv),
    **dict.fromkeys((torch.conv3d, _aten.conv3d.default, _aten.conv3d.padding), conv),
    **dict.fromkeys((torch.conv_transpose1d, _aten.conv_transpose1d.default), conv_transpose),
    **dict.fromkeys((torch.conv_transpose2d, _aten.conv_transpose2d.input), conv_transpose),
    **dict.fromkeys((torch.conv_transpose3d, _aten.conv_transpose3d.input), conv_transpose),
    **dict.fromkeys((torch.convolution, _aten.convolution.default), convolution),
}


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout = MemoryLayout(input)
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
        and is_large(input, settings)
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

    def make(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.convolution(input, weight, bias, *shape)

    output = make(input, weight, bias)
    if input.nbytes < output.nbytes and is_cheap(products_of(output, weight)):
        note(output, make, weakref.ref(input), weight, *(() if bias is None else (bias,)))
    return output


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.to(dtype)


def _paddings(padding: Sizes | str, dilations: list[int], weight: Tensor) -> list[int] | None:
    if not isinstance(padding, str):
        return each(padding, len(dilations))
    if padding == "valid":
        return [0] * len(dilations)
    totals = [d * (size - 1) for d, size in zip(dilations, weight.shape[2:], strict=True)]
    # PyTorch pads the input by hand where the two sides differ.
    return None if any(total % 2 for total in totals) else [total // 2 for total in totals]
