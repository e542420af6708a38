"""Batch norms whose statistics are of all processes' samples, on any device.

torch's own `SyncBatchNorm` computes on accelerators only (it refuses CPU tensors, as of 2.15) and
is a module, while the suffix of a cut is a graph of operations. Here the operation itself is
replaced while a training step's forward runs: `torch.distributed` sums the statistics, forward and
backward, through the group that DDP sums gradients by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from frostline.cutting.effects import parts_of_batches

_ATEN = torch.ops.aten.batch_norm.default


@contextmanager
def shared_norms(*, counts: bool) -> Iterator[None]:
    """In it batch norms that take statistics take them over all processes, which all are in it.

    Args:
        counts: whether this process's samples count; a spare one only goes along.
    """
    with _SharedNorms(counts=counts), parts_of_batches():
        yield


@final
class _SharedNorms(TorchFunctionMode):
    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        named = kwargs or {}
        if func is functional.batch_norm:
            given = _functional(*args, **named)
        elif func in (torch.batch_norm, _ATEN):
            given = _operation(*args, **named)
        else:
            return func(*args, **named)
        inputs, training = given[0], given[5]
        if not (training and torch.is_grad_enabled()):
            return func(*args, **named)
        return _normalised(inputs, *given[1:5], *given[6:], counts=self._counts)


def _functional(
    input: Tensor,  # noqa: A002 - by which callers pass it
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return input, weight, bias, running_mean, running_var, training, momentum, eps


def _operation(
    input: Tensor,  # noqa: A002 - by which callers pass it
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> tuple[Any, ...]:
    del cudnn_enabled
    return input, weight, bias, running_mean, running_var, training, momentum, eps


def _normalised(
    inputs: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    *,
    counts: bool,
) -> Tensor:
    """As `torch.batch_norm` in training; the variance from deviations, in a second sum."""
    along = [dim for dim in range(inputs.dim()) if dim != 1]
    shape = [1, -1, *[1] * (inputs.dim() - 2)]
    values = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
    own = values if counts else values[:0]
    count = own.new_full((1,), own.numel() // own.shape[1] if own.numel() else 0)
    *sums, every = _Summed.apply(torch.cat([own.sum(along), count])).split([own.shape[1], 1])
    number = every.detach().item()
    if number < 2:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{inputs.size()} in all processes"
        )
    mean = sums[0] / number
    off = values - mean.view(shape)
    squares = (off if counts else off[:0]).square().sum(along)
    variance = _Summed.apply(squares) / number
    made = off * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        made = made * weight.view(shape).to(made.dtype)
    if bias is not None:
        made = made + bias.view(shape).to(made.dtype)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (number / (number - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    found: Tensor = made.to(inputs.dtype)
    return found


@final
class _Summed(torch.autograd.Function):
    """The sum over all processes; backward, that of their gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # noqa: ARG004 - torch passes it
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
