"""Dropout keeps a bit an element and draws the same random numbers as PyTorch's; so in attention.

Fused attention keeps less, and PyTorch takes it where it exists. The chain of operations that it
takes elsewhere, as on the CPU once there is dropout, keeps three times the weights of attention:
the softmax, the noise and their product. Here it keeps the softmax and a bit for each weight.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.bits import is_dense, pack, unpack
from frostline.backward.recomputing import Remake, keeping
from frostline.backward.tensors import (
    Layout,
    Rules,
    Settings,
    is_large,
    is_ordinary,
    is_spared,
    may_be_overwritten,
    wants,
)

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
    if inplace and (input.is_cuda or not may_be_overwritten(input)):
        return None
    output: Tensor = _Dropout.apply(input, p, inplace)
    return output


def plain_dropout(settings: Settings, input: Tensor, p: float, train: bool) -> Tensor | None:
    """`torch.dropout`."""
    return dropout(settings, input, p, train)


def attention(
    settings: Settings,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    """`torch.nn.functional.scaled_dot_product_attention`."""
    if not 0 < dropout_p < 1 or not (wants(query) or wants(key)):
        return None
    if not is_ordinary(query, key, value):
        return None
    given = (query, key, value, attn_mask, dropout_p, *rest)
    run = partial(F.scaled_dot_product_attention, *given, **named)
    return keeping(run, _Chain(dropout_p, settings).choose)


def multi_head(settings: Settings, *args: Any, **kwargs: Any) -> Any:
    """`torch.nn.functional.multi_head_attention_forward`, whose attention is one of its steps."""
    given = _HEADS.bind(*args, **kwargs).arguments
    p = given["dropout_p"]
    if not given.get("training", True) or not 0 < p < 1 or not is_ordinary(given["query"]):
        return None
    run = partial(F.multi_head_attention_forward, *args, **kwargs)
    return keeping(run, _Chain(p, settings).choose)


RULES: Rules = {
    F.dropout: dropout,
    **dict.fromkeys((torch.dropout, _aten.dropout.default), plain_dropout),
    F.scaled_dot_product_attention: attention,
    _aten.scaled_dot_product_attention.default: attention,
    F.multi_head_attention_forward: multi_head,
}


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float, inplace: bool) -> Tensor:
        ctx.p, ctx.layout = p, Layout(input)
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
        (bits,), (grad,) = ctx.saved_tensors, grads
        if grad.is_cuda:
            kept = unpack(bits, ctx.layout.sizes, ctx.layout.strides).bool()
            scale = 1.0 / (1.0 - ctx.p)
            return _aten.native_dropout_backward.default(grad, kept, scale), None, None
        noise = _noise(ctx.layout, ctx.p, bits)
        # Written over where the result is laid out so in any case, and nothing differentiates it.
        fits = noise.stride() == grad.stride() and not torch.is_grad_enabled()
        return noise.mul_(grad) if fits else grad * noise, None, None


@final
class _Chain:
    """Tells the three tensors of weights, which PyTorch's chain keeps in this order."""

    def __init__(self, p: float, settings: Settings) -> None:
        self._p = p
        self._settings = settings
        self._softmax: Tensor | None = None
        self._node: object = None
        self._bits: Tensor | None = None

    def choose(self, kept: Tensor) -> Remake | None:
        """For `keeping`."""
        if self._softmax is None:
            if "Softmax" in type(kept.grad_fn).__name__ and kept.is_contiguous():
                self._softmax = kept if is_large(kept, self._settings) else None
                self._node = kept.grad_fn
            return None
        layout = Layout(self._softmax)
        noise = partial(_noise, layout, self._p)
        if self._bits is None:
            if not layout.is_of(kept) or kept.grad_fn is not None:
                return None
            self._bits = pack(kept != 0)
            return Remake(noise, (self._bits,), layout)
        if kept.numel() != self._softmax.numel() or not self._is_product(kept):
            return None

        def dropped(softmax: Tensor, bits: Tensor) -> Tensor:
            return noise(bits).mul_(softmax)

        return Remake(dropped, (self._softmax, self._bits), layout)

    def _is_product(self, kept: Tensor) -> bool:
        """Whether it is the softmax times the noise, seen otherwise."""
        node = kept.grad_fn
        while type(node).__name__ in _VIEWS:
            node = node.next_functions[0][0]  # type: ignore[union-attr]  # those have one
        if type(node).__name__ != "MulBackward0":
            return False
        # A value that is another product may have as many elements.
        return any(before is self._node for before, _ in node.next_functions)  # type: ignore[union-attr]


def _noise(layout: Layout, p: float, bits: Tensor) -> Tensor:
    """Zero where it was dropped, else what makes up for that, as dropout computes it."""
    return unpack(bits, layout.sizes, layout.strides).to(layout.dtype).div_(1 - p)


_HEADS = inspect.signature(F.multi_head_attention_forward)
_VIEWS = ("ViewBackward0", "ExpandBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0")
