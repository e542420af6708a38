"""Dropout keeps a bit an element; it draws the same random numbers as PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.bits import is_dense, pack, unpack
from frostline.backward.settings import Settings
from frostline.backward.tensors import is_spared

_aten = torch.ops.aten


def dropout(
    settings: Settings,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.dropout`."""
    if not training or not 0 < p < 1 or not is_spared(input, settings) or not is_dense(input):
        return None
    if inplace and (input.is_leaf or input._is_view() or input.is_cuda):
        return None
    output: Tensor = _Dropout.apply(input, p, inplace)
    return output


def plain_dropout(settings: Settings, input: Tensor, p: float, train: bool) -> Tensor | None:
    """`torch.dropout`."""
    return dropout(settings, input, p, train)


RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.dropout: dropout,
    torch.dropout: plain_dropout,
    _aten.dropout.default: plain_dropout,
}


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float, inplace: bool) -> Tensor:
        ctx.p = p
        ctx.sizes, ctx.strides = input.shape, input.stride()
        if input.is_cuda:  # one kernel there, two operations elsewhere
            output, kept = torch.native_dropout(input, p, True)
            ctx.save_for_backward(pack(kept))
            return output
        noise = torch.empty_like(input).bernoulli_(1 - p)
        ctx.save_for_backward(pack(noise != 0))
        noise.div_(1 - p)
        if inplace:
            ctx.mark_dirty(input)
            return input.mul_(noise)
        return torch.mul(input, noise, out=noise)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (bits,) = ctx.saved_tensors
        kept = unpack(bits, ctx.sizes, ctx.strides)
        if grads[0].is_cuda:
            scale = 1.0 / (1.0 - ctx.p)
            return _aten.native_dropout_backward.default(grads[0], kept.bool(), scale), None, None
        noise = kept.to(grads[0].dtype).div_(1 - ctx.p)
        fits = noise.stride() == grads[0].stride() and not torch.is_grad_enabled()
        grad = noise.mul_(grads[0]) if fits else grads[0] * noise
        return grad, None, None
