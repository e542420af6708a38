"""ReLU and its kin: one bit an element, or the output where somebody else keeps it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.bits import is_dense, pack_where, unpack
from frostline.backward.deferring import Watch, is_packed, watchable
from frostline.backward.settings import Settings
from frostline.backward.tensors import is_spared

_aten = torch.ops.aten


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """A function that is straight on both sides of one or two corners."""

    name: Literal["relu", "hardtanh", "leaky_relu"]
    low: float = 0.0
    high: float = 0.0
    slope: float = 0.0

    def run(self, input: Tensor, inplace: bool) -> Tensor:
        """The function itself."""
        output: Tensor
        match self.name:
            case "relu":
                output = torch.relu_(input) if inplace else torch.relu(input)
            case "hardtanh":
                run = torch._C._nn.hardtanh_ if inplace else torch._C._nn.hardtanh
                output = run(input, self.low, self.high)
            case "leaky_relu":
                leak = torch._C._nn.leaky_relu_ if inplace else torch._C._nn.leaky_relu
                output = leak(input, self.slope)
        return output

    def keeps_output(self, inplace: bool) -> bool:
        """Whether PyTorch keeps the output, not the input: then nobody may write over it."""
        return self.name == "relu" or (self.name == "leaky_relu" and inplace)

    def passes(self, kept: Tensor) -> Tensor:
        """Where the gradient passes as it is, from what PyTorch would keep."""
        match self.name:
            case "relu":
                return kept != 0
            case "hardtanh":
                # Its own kernel, which has ways with NaN and with bounds that the type rounds.
                one = torch.ones_like(kept)
                passed: Tensor = _aten.hardtanh_backward.default(one, kept, self.low, self.high)
                return passed != 0
            case "leaky_relu":
                return kept > 0

    def back(self, grad: Tensor, output: Tensor) -> Tensor:
        """The gradient, from the whole output."""
        found: Tensor
        match self.name:
            case "relu":
                found = _aten.threshold_backward.default(grad, output, 0)
            case "hardtanh":
                found = _aten.hardtanh_backward.default(grad, output, self.low, self.high)
            case "leaky_relu":
                found = _aten.leaky_relu_backward.default(grad, output, self.slope, True)
        return found

    def back_from(self, grad: Tensor, mask: Tensor) -> Tensor:
        """The gradient, from where it passes."""
        # Numbers, not booleans: three times as fast in the kernels of the CPU.
        passes = mask.to(grad.dtype)
        # Written over where the result is laid out so in any case: PyTorch goes by both operands.
        fits = passes.stride() == grad.stride() and not torch.is_grad_enabled()
        room = {"grad_input": passes} if fits else {}
        # Each with its own kernel, since they differ in which operand's layout they follow.
        match self.name:
            case "relu":
                given: tuple[Any, ...] = (_aten.threshold_backward, 0)
            case "hardtanh":
                given = (_aten.hardtanh_backward, 0, 2)
            case "leaky_relu":
                given = (_aten.leaky_relu_backward, self.slope, False)
        back = given[0].grad_input if fits else given[0].default
        found: Tensor = back(grad, passes, *given[1:], **room)
        return found


def relu(settings: Settings, input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.relu` and its other names."""
    return _masked(settings, input, _RELU, inplace)


def relu_(settings: Settings, input: Tensor) -> Tensor | None:
    """`torch.relu_`."""
    return _masked(settings, input, _RELU, True)


def relu6(settings: Settings, input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.relu6`."""
    return _masked(settings, input, _RELU6, inplace)


def relu6_(settings: Settings, input: Tensor) -> Tensor | None:
    """`aten.relu6_`."""
    return _masked(settings, input, _RELU6, True)


def hardtanh(
    settings: Settings,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.hardtanh`."""
    if not min_val < max_val:
        return None
    return _masked(settings, input, Kind("hardtanh", float(min_val), float(max_val)), inplace)


def hardtanh_(
    settings: Settings, input: Tensor, min_val: float = -1.0, max_val: float = 1.0
) -> Tensor | None:
    """`torch.nn.functional.hardtanh_`."""
    return hardtanh(settings, input, min_val, max_val, True)


def leaky_relu(
    settings: Settings, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor | None:
    """`torch.nn.functional.leaky_relu`; with a negative slope the output does not tell the side."""
    if negative_slope < 0:
        return None
    return _masked(settings, input, Kind("leaky_relu", slope=float(negative_slope)), inplace)


def leaky_relu_(settings: Settings, input: Tensor, negative_slope: float = 0.01) -> Tensor | None:
    """`torch.nn.functional.leaky_relu_`."""
    return leaky_relu(settings, input, negative_slope, True)


RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.relu: relu,
    torch.relu: relu,
    Tensor.relu: relu,
    torch.relu_: relu_,
    Tensor.relu_: relu_,
    _aten.relu.default: relu,
    _aten.relu_.default: relu_,
    F.relu6: relu6,
    _aten.relu6.default: relu6,
    _aten.relu6_.default: relu6_,
    F.hardtanh: hardtanh,
    F.hardtanh_: hardtanh_,
    _aten.hardtanh.default: hardtanh,
    _aten.hardtanh_.default: hardtanh_,
    F.leaky_relu: leaky_relu,
    F.leaky_relu_: leaky_relu_,
    _aten.leaky_relu.default: leaky_relu,
    _aten.leaky_relu_.default: leaky_relu_,
}

_RELU = Kind("relu")
_RELU6 = Kind("hardtanh", 0.0, 6.0)


class _Masked(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, kind: Kind, inplace: bool) -> Tensor:
        ctx.kind = kind
        ctx.sizes = input.shape
        ctx.strides = input.stride()
        if inplace:
            ctx.mark_dirty(input)
        if not kind.keeps_output(inplace):
            ctx.save_for_backward(pack_where(kind.passes, input))
            return kind.run(input, inplace)
        output = kind.run(input, inplace)
        alias = output.detach()
        ctx.save_for_backward(alias)
        ctx.strides = output.stride()
        ctx.watch = Watch(output, alias, kind.passes) if watchable(output) else None
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (saved,) = ctx.saved_tensors
        kind: Kind = ctx.kind
        if not is_packed(saved):
            return kind.back(grads[0], saved), None, None
        mask = unpack(saved, ctx.sizes, ctx.strides)
        return kind.back_from(grads[0], mask), None, None


def _masked(settings: Settings, input: Tensor, kind: Kind, inplace: bool) -> Tensor | None:
    if not is_spared(input, settings):
        return None
    if not (kind.keeps_output(inplace) or is_dense(input)):
        return None
    if inplace and (input.is_leaf or input._is_view()):
        return None  # an error of PyTorch's, or its own way of keeping views right
    output: Tensor = _Masked.apply(input, kind, inplace)
    return output
