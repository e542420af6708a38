"""GELU needs its input, or where the user accepts it its slope, in a byte an element.

The slope lies between -0.129 and 1.129 (for the tanh form too), so a step of a 255th of that width
puts it within 0.0025. Source of the idea: GACT and its kin, which compress what is kept.
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

from frostline.backward.recomputing import note
from frostline.backward.settings import Settings
from frostline.backward.tensors import is_spared

_aten = torch.ops.aten
_LOWEST = -0.13
_STEP = 1.26 / 255


def gelu(settings: Settings, input: Tensor, *, approximate: str = "none") -> Tensor | None:
    """`torch.nn.functional.gelu`."""
    if not is_spared(input, settings):
        return None
    output: Tensor
    if settings.gelu == "compressed":
        output = _Gelu.apply(input, approximate)
    else:
        output = F.gelu(input, approximate=approximate)
        note(output, partial(F.gelu, approximate=approximate), input)
    return output


RULES: dict[Any, Callable[..., Tensor | None]] = {F.gelu: gelu, _aten.gelu.default: gelu}


class _Gelu(Function):
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
