"""Norms in eval mode whose scale is frozen keep no input.

In train mode, and for norms over a sample of its own (group, layer, RMS), the gradient of the input
needs the input: PyTorch keeps that and two numbers a group, and so it is left to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.settings import Settings
from frostline.backward.tensors import Layout, is_ordinary, is_worth, wants

_aten = torch.ops.aten


def batch_norm(
    settings: Settings,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor | None:
    """`torch.batch_norm` with given statistics."""
    del momentum, cudnn_enabled
    if training or running_mean is None or running_var is None:
        return None
    if wants(weight) or not (wants(input) or wants(bias)) or input.dim() < 2:
        return None
    if wants(running_mean) or wants(running_var) or not is_worth(input, settings):
        return None
    if not is_ordinary(input, weight, bias, running_mean, running_var):
        return None
    output: Tensor = _GivenStatistics.apply(input, weight, bias, running_mean, running_var, eps)
    return output


def functional_batch_norm(
    settings: Settings,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """`torch.nn.functional.batch_norm`."""
    given = (running_mean, running_var, training, momentum, eps, True)
    return batch_norm(settings, input, weight, bias, *given)


def instance_norm(
    settings: Settings,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """`torch.nn.functional.instance_norm` with given statistics: a batch norm over one sample."""
    if use_input_stats or running_mean is None or running_var is None or input.dim() < 3:
        return None
    if wants(weight) or wants(bias):  # repeated for each sample: PyTorch's way of adding up
        return None
    samples, channels = input.shape[:2]
    given = (weight, bias, running_mean, running_var)
    repeated: list[Any] = [None if t is None else t.repeat(samples) for t in given]
    rows = input.contiguous().view(1, samples * channels, *input.shape[2:])
    weight, bias, mean, var = repeated
    output = batch_norm(settings, rows, weight, bias, mean, var, False, momentum, eps, True)
    return None if output is None else output.view(input.shape)


RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: functional_batch_norm,
    torch.batch_norm: batch_norm,
    _aten.batch_norm.default: batch_norm,
    F.instance_norm: instance_norm,
}


class _GivenStatistics(Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(weight, mean, var)
        ctx.layout = Layout(input)
        ctx.eps = eps
        on = torch.backends.cudnn.enabled
        return torch.batch_norm(input, weight, bias, mean, var, False, 0.0, eps, on)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weight, mean, var = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]]
        if torch.is_grad_enabled():
            found = _differentiable(grads[0], weight, var, ctx.eps, wanted)
        else:
            # The kernel reads an input, for a gradient that nobody wants: it gets the one that is
            # in the cache anyway.
            layout: Layout = ctx.layout
            read = grads[0] if layout.is_of(grads[0]) else layout.zeros()
            input_grad, _, bias_grad = _aten.native_batch_norm_backward.default(
                grads[0], read, weight, mean, var, None, None, False, ctx.eps, wanted
            )
            found = (input_grad if wanted[0] else None, bias_grad if wanted[2] else None)
        return found[0], None, found[1], None, None, None


def _differentiable(
    grad: Tensor, weight: Tensor | None, var: Tensor, eps: float, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The same in terms that can be differentiated again."""
    channels = [1, -1] + [1] * (grad.dim() - 2)
    scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    over = [0, *range(2, grad.dim())]
    return (
        grad * scale.view(channels).to(grad.dtype) if wanted[0] else None,
        grad.sum(over).to(var.dtype) if wanted[2] else None,
    )
