"""Weights as libraries for quantisation make them: a tensor subclass that few operations take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("opaque", "cutting", "trainable")


class Int8Weight(Tensor):
    """Whole numbers and a scale for each row, of which a linear layer makes the weight.

    Its kind: `opaque` lets gradients through to what is below but gets none, `cutting` not even
    that, `trainable` gets one.
    """

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor, kind: str) -> Int8Weight:
        made: Int8Weight = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)
        made.numbers, made.scale, made.kind = numbers, scale, kind
        return made

    @classmethod
    def of(cls, weight: Tensor, kind: str) -> Int8Weight:
        scale = weight.detach().abs().amax(dim=1, keepdim=True) / 127
        return cls((weight.detach() / scale).round().to(torch.int8), scale, kind)

    def dequantize(self) -> Tensor:
        return self.numbers * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, str]]:
        return ["numbers", "scale"], {"kind": self.kind}

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            values, weight, *bias = args
            if weight.kind == "trainable":
                return _Trained.apply(values, weight) + (bias[0] if bias else 0)
            values = values.detach() if weight.kind == "cutting" else values
            return F.linear(values, weight.dequantize(), *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = torch.ops.aten
        one = args[0]
        if func is known.detach.default:
            return cls(one.numbers, one.scale, one.kind)
        if func is known.clone.default:
            return cls(one.numbers.clone(), one.scale.clone(), one.kind)
        if func is known.copy_.default:
            one.numbers.copy_(args[1].numbers)
            one.scale.copy_(args[1].scale)
            return one
        raise NotImplementedError(func)


class _Trained(torch.autograd.Function):
    """A linear layer whose weight gets a gradient although it is made of whole numbers."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Int8Weight) -> Tensor:
        ctx.save_for_backward(values, weight)
        return values @ weight.dequantize().T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        values, weight = ctx.saved_tensors
        return gradients[0] @ weight.dequantize(), gradients[0].T @ values


def quantise(layer: nn.Linear, kind: str) -> None:
    """Give the layer such a weight, as it comes from those libraries: without a gradient switch."""
    layer.weight = nn.Parameter(Int8Weight.of(layer.weight, kind), requires_grad=False)
