"""Norms in eval mode whose scale is frozen keep no input.

In train mode, and for norms over a sample of its own (group, layer, RMS), the gradient of the input
needs the input: PyTorch keeps that and two numbers a group, and so it is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from frostline.backward.recomputing import Remake, keeping, note
from frostline.backward.tensors import Layout, Rules, Settings, is_cast, may_spare, memory_of, wants

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
    statistics = (running_mean, running_var)
    if any(map(wants, statistics)) or not may_spare(settings, input, weight, bias, *statistics):
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


def layer_norm(
    settings: Settings,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor | None:
    """`torch.nn.functional.layer_norm`: it keeps its input, so who is behind need keep nothing."""
    del cudnn_enable
    given = tuple(t for t in (input, weight, bias) if t is not None)
    if not (wants(input) or wants(weight)) or not may_spare(settings, *given) or is_cast(input):
        return None
    shape, is_scaled = tuple(normalized_shape), weight is not None

    def run(input: Tensor, *affine: Tensor) -> Tensor:
        scale = affine[0] if is_scaled else None
        return F.layer_norm(input, shape, scale, affine[-1] if affine[is_scaled:] else None, eps)

    output = run(*given)
    note(output, run, *given)
    return output


def rms_norm(
    settings: Settings,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor | None:
    """`torch.nn.functional.rms_norm`: where it is a chain, the normed input follows from two."""
    if weight is None or not wants(weight) or not may_spare(settings, input, weight):
        return None
    rows: list[Tensor] = []
    scales: list[Tensor] = []

    # The chain keeps the input and the scale of each row, both twice, before the normed input.
    def choose(kept: Tensor) -> Remake | None:
        if memory_of(kept) == memory_of(weight):
            return None
        if kept.shape != input.shape:
            scales.append(kept)
            return None
        rows.append(kept)
        first = rows[0]
        if memory_of(kept) == memory_of(first) or len(scales) != 2:
            return None
        return Remake(torch.mul, (first, scales[0]), Layout(kept))

    return keeping(lambda: F.rms_norm(input, [*normalized_shape], weight, eps), choose)


RULES: Rules = {
    F.batch_norm: functional_batch_norm,
    **dict.fromkeys((torch.batch_norm, _aten.batch_norm.default), batch_norm),
    F.instance_norm: instance_norm,
    **dict.fromkeys((F.layer_norm, torch.layer_norm, _aten.layer_norm.default), layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm, _aten.rms_norm.default), rms_norm),
}


class _GivenStatistics(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, *given: Any) -> Tensor:
        weight, bias, mean, var, eps = given
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
            read = grads[0] if layout.is_of(grads[0]) else layout.stand_in().zero_()
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
