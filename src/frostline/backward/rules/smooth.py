"""GELU, SiLU, hard swish and Mish keep their input; their output can be computed from it again.

Where the user accepts it, GELU keeps its slope instead, in a byte an element: it lies between
-0.129 and 1.129 (for the tanh form too), so a step of a 255th of that width puts it within 0.0025.
Source of that idea: GACT and its like, which compress what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frostline.backward.recomputing import keeping, note
from frostline.backward.tensors import Rules, Settings, is_spared

_aten = torch.ops.aten
_nn = torch._C._nn
_LOWEST = -0.13
_STEP = 1.26 / 255

Elementwise = Callable[[Tensor], Tensor]


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
    run: Elementwise, run_: Elementwise, settings: Settings, input: Tensor, inplace: bool = False
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


_silu = partial(swish, _nn.silu, _nn.silu_)
_hardswish = partial(swish, _nn.hardswish, _nn.hardswish_)
_mish = partial(swish, _nn.mish, _nn.mish_)

RULES: Rules = {
    **dict.fromkeys((F.gelu, _aten.gelu.default), gelu),
    **dict.fromkeys((F.silu, _aten.silu.default), _silu),
    **dict.fromkeys((F.hardswish, _aten.hardswish.default), _hardswish),
    **dict.fromkeys((F.mish, _aten.mish.default), _mish),
    _aten.silu_.default: partial(_silu, inplace=True),
    _aten.hardswish_.default: partial(_hardswish, inplace=True),
    _aten.mish_.default: partial(_mish, inplace=True),
}


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
