"""Activations: a bit an element, or the output where somebody else keeps it, or the input alone.

ReLU and its like need one bit. A ReLU cannot know, when it runs, whether its output will be kept:
a trainable convolution behind it keeps it, and then bits would come on top; a frozen one does not.
So an alias of the output is saved, which costs nothing while the output lives. If the output dies
before the backward pass, and nobody else holds its memory, the alias is turned into bits, in place
and behind autograd's back. PyTorch would hold the whole output in any case: nothing is ever kept
that it would not.

The alias goes through `save_for_backward`, so whoever hooks saved tensors sees it (offloading moves
it in full), and autograd frees it as it frees all others. Checkpointing drops it, and when it
repeats the forward compares it with the first: there it stays as it is.

GELU, SiLU, hard swish and Mish keep their input; their output can be computed from it again. Where
the user accepts it, GELU keeps its slope instead, in a byte an element: it lies between -0.129 and
1.129 (for the tanh form too), so a step of a 255th of that width puts it within 0.0025. Source of
that idea: GACT and its like, which compress what is kept.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.backward.bits import is_dense, pack_where, unpack
from frostline.backward.recomputing import keeping, note, outer_pack
from frostline.backward.tensors import Rules, Settings, is_spared, may_be_overwritten, memory_of

_aten = torch.ops.aten
_nn = torch._C._nn
_LOWEST = -0.13  # slope of a GELU
_STEP = 1.26 / 255


@final
@dataclass(frozen=True, slots=True)
class PiecewiseLinear:
    """A function that is straight on both sides of one or two corners.

    Attributes:
        run: the function itself; `run_` writes over its input.
        passes: where the gradient passes as it is, from what PyTorch would keep.
        keeps_output: whether PyTorch keeps the output, not the input, for `run` and for `run_`:
            then nobody may write over it.
        kernel: its own backward kernel, since they differ in which operand's layout they follow;
            called with the gradient, with what was kept or a mask of 0 and 1, and `behind`.
    """

    run: Callable[..., Tensor]
    run_: Callable[..., Tensor]
    passes: Callable[[Tensor], Tensor]
    keeps_output: tuple[bool, bool]
    kernel: Any
    behind: tuple[Any, ...]


def masked(
    function: PiecewiseLinear, settings: Settings, input: Tensor, inplace: bool = False
) -> Tensor | None:
    """`torch.nn.functional.relu`, `relu6` and their other names."""
    if not is_spared(input, settings):
        return None
    if not (function.keeps_output[inplace] or is_dense(input)):
        return None
    if inplace and not may_be_overwritten(input):
        return None
    output: Tensor = _Masked.apply(input, function, inplace)
    return output


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
    return masked(_hardtanh(float(min_val), float(max_val)), settings, input, inplace)


def leaky_relu(
    settings: Settings, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor | None:
    """`torch.nn.functional.leaky_relu`; with a negative slope the output does not tell the side."""
    if not negative_slope >= 0:
        return None
    slope = float(negative_slope)
    function = PiecewiseLinear(
        run=partial(_nn.leaky_relu, negative_slope=slope),
        run_=partial(_nn.leaky_relu_, negative_slope=slope),
        passes=lambda kept: kept > 0,
        keeps_output=(False, True),
        kernel=_aten.leaky_relu_backward,
        behind=(slope, True),
    )
    return masked(function, settings, input, inplace)


def _hardtanh(low: float, high: float) -> PiecewiseLinear:
    def passes(kept: Tensor) -> Tensor:
        # Its own kernel, which has ways with NaN and with bounds that the type rounds.
        passed: Tensor = _aten.hardtanh_backward.default(torch.ones_like(kept), kept, low, high)
        return passed != 0

    return PiecewiseLinear(
        run=partial(_nn.hardtanh, min_val=low, max_val=high),
        run_=partial(_nn.hardtanh_, min_val=low, max_val=high),
        passes=passes,
        keeps_output=(False, False),
        kernel=_aten.hardtanh_backward,
        behind=(0, 2),  # around a mask's 1
    )


def gelu(settings: Settings, input: Tensor, *, approximate: str = "none") -> Tensor | None:
    """`torch.nn.functional.gelu`."""
    if not is_spared(input, settings):
        return None
    output: Tensor
    if settings.gelu == "compressed":
        output = _CompressedGelu.apply(input, approximate)
    else:
        output = F.gelu(input, approximate=approximate)
        note(output, partial(F.gelu, approximate=approximate), input)
    return output


def swish(
    run: Callable[..., Tensor],
    run_: Callable[..., Tensor],
    settings: Settings,
    input: Tensor,
    inplace: bool = False,
) -> Tensor | None:
    """`torch.nn.functional.silu`, `hardswish`, `mish`."""
    if not is_spared(input, settings):
        return None
    if not inplace:
        output = run(input)
        note(output, run, input)
        return output
    # PyTorch keeps a copy of what is written over: the output can be computed from that.
    copies: list[Tensor] = []
    output = keeping(lambda: run_(input), copies.append)
    if len(copies) == 1:
        note(output, run, copies[0])
    return output


_relu = partial(
    masked,
    PiecewiseLinear(
        run=torch.relu,
        run_=torch.relu_,
        passes=lambda kept: kept != 0,
        keeps_output=(True, True),
        kernel=_aten.threshold_backward,
        behind=(0,),
    ),
)
_relu6 = partial(masked, _hardtanh(0.0, 6.0))
_silu = partial(swish, _nn.silu, _nn.silu_)
_hardswish = partial(swish, _nn.hardswish, _nn.hardswish_)
_mish = partial(swish, _nn.mish, _nn.mish_)

RULES: Rules = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu, _aten.relu.default), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_, _aten.relu_.default), partial(_relu, inplace=True)),
    **dict.fromkeys((F.relu6, _aten.relu6.default), _relu6),
    _aten.relu6_.default: partial(_relu6, inplace=True),
    **dict.fromkeys((F.hardtanh, _aten.hardtanh.default), hardtanh),
    **dict.fromkeys((F.hardtanh_, _aten.hardtanh_.default), partial(hardtanh, inplace=True)),
    **dict.fromkeys((F.leaky_relu, _aten.leaky_relu.default), leaky_relu),
    **dict.fromkeys((F.leaky_relu_, _aten.leaky_relu_.default), partial(leaky_relu, inplace=True)),
    **dict.fromkeys((F.gelu, _aten.gelu.default), gelu),
    **dict.fromkeys((F.silu, _aten.silu.default), _silu),
    **dict.fromkeys((F.hardswish, _aten.hardswish.default), _hardswish),
    **dict.fromkeys((F.mish, _aten.mish.default), _mish),
    _aten.silu_.default: partial(_silu, inplace=True),
    _aten.hardswish_.default: partial(_hardswish, inplace=True),
    _aten.mish_.default: partial(_mish, inplace=True),
}


class _Masked(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, function: PiecewiseLinear, inplace: bool) -> Tensor:
        ctx.function = function
        ctx.sizes = input.shape
        ctx.strides = input.stride()
        run = function.run_ if inplace else function.run
        if inplace:
            ctx.mark_dirty(input)
        if not function.keeps_output[inplace]:
            ctx.save_for_backward(pack_where(function.passes, input))
            return run(input)
        output = run(input)
        alias = output.detach()
        ctx.save_for_backward(alias)
        ctx.strides = output.stride()
        # Whoever repeats a forward compares what it keeps with the first, and bits must be laid
        # out again: a checkpoint's alias, and one that is not dense, stay as they are.
        is_repeated = getattr(outer_pack(), "__module__", "") == "torch.utils.checkpoint"
        if is_dense(output) and not is_repeated:
            ctx.packing = _LatePacking(output, alias, function.passes)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (saved,), (grad,) = ctx.saved_tensors, grads
        kernel, behind = ctx.function.kernel, ctx.function.behind
        if saved.dtype is not torch.uint8:  # not turned into bits
            return kernel.default(grad, saved, *behind), None, None
        # Numbers, not booleans: three times as fast in the kernels of the CPU.
        passes = unpack(saved, ctx.sizes, ctx.strides).to(grad.dtype)
        # Written over where the result is laid out so in any case: PyTorch goes by both operands.
        if passes.stride() != grad.stride() or torch.is_grad_enabled():
            return kernel.default(grad, passes, *behind), None, None
        return kernel.grad_input(grad, passes, *behind, grad_input=passes), None, None


@final
class _LatePacking:
    """Turns `alias` into bits when `output`, whose memory it shares, dies in the forward pass.

    It keeps neither alive, and must itself be kept for as long as it is to act.
    """

    __slots__ = ("__weakref__", "_alias", "_output", "_passes", "_stream", "_task")

    def __init__(self, output: Tensor, alias: Tensor, passes: Callable[[Tensor], Tensor]) -> None:
        self._alias = weakref.ref(alias)
        self._passes = passes
        # In the backward pass an output dies because the operation behind is done with it: this
        # one's turn comes next. A forward inside a backward (checkpoints) has its own number.
        self._task = torch._C._current_graph_task_id()
        self._stream = torch.cuda.current_stream(output.device) if output.is_cuda else None
        pack = weakref.WeakMethod(self.output_died)
        self._output = weakref.ref(output, lambda _: (alive := pack()) and alive())

    def output_died(self) -> None:
        """Pack, unless nobody waits for the bits or somebody else holds the memory."""
        alias = self._alias()
        if sys.is_finalizing() or alias is None:
            return
        if torch._C._current_graph_task_id() != self._task:
            return
        # Alone are the alias and the output that is about to go.
        if torch._C._storage_Use_Count(memory_of(alias)) > _ALONE:
            return
        stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with torch._C.DisableTorchFunction(), torch.no_grad(), stream:
            alias.data = pack_where(self._passes, alias)


def _count_when_alone() -> int:
    output = torch.empty(1)
    alias = output.detach()
    return int(torch._C._storage_Use_Count(memory_of(alias)))


_ALONE = _count_when_alone()


class _CompressedGelu(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, approximate: str) -> Tensor:
        one = torch.ones((), dtype=input.dtype, device=input.device).expand_as(input)
        slope = _aten.gelu_backward.default(one, input, approximate=approximate)
        steps = slope.float().sub_(_LOWEST).div_(_STEP).round_().clamp_(0, 255)
        ctx.save_for_backward(steps.to(torch.uint8))
        return F.gelu(input, approximate=approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (steps,) = ctx.saved_tensors
        slope = steps.to(torch.float32).mul_(_STEP).add_(_LOWEST).to(grads[0].dtype)
        return slope.mul_(grads[0]), None
