"""Convolutions whose weight is frozen keep no input; all others PyTorch does as well as can be.

What such a one makes of a smaller input that wants no gradient, as a first layer does of a batch,
can be computed from it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frostline.backward.recomputing import Remake, is_cheap, keeping, layout_only, note, outer_pack
from frostline.backward.tensors import Layout, Rules, Settings, is_cast, may_spare, memory_of, wants

_aten = torch.ops.aten


def convolution(
    run: Callable[..., Tensor],
    settings: Settings,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    """`torch.conv1d`, `torch.conv_transpose2d`, `torch.convolution` and so on."""
    if wants(weight) or not may_spare(settings, input, weight, bias):
        return None
    if not input.dim() == weight.dim() > 2:
        return None

    def make(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return run(input, weight, bias, *rest, **named)

    if not wants(input) and not wants(bias):
        return None if is_cast(input) else _made_of_the_batch(make, input, weight, bias)
    if is_cast(weight) and weight.dtype is not torch.float64:
        # As autocast does it with a frozen one; done here to know the weight below.
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    own = memory_of(weight)

    def choose(kept: Tensor) -> Remake | None:
        return None if memory_of(kept) == own else layout_only(kept)

    # The kernel goes by the input's layout alone where no gradient of the weight is wanted. Hooks
    # go on the input alone if they may, since weight casting puts its own on the weight.
    if outer_pack() is not None:
        return keeping(lambda: make(input, weight, bias), choose)
    output = make(input, weight, bias)
    node: Any = output.grad_fn
    node._raw_saved_input.register_hooks(Layout, Layout.stand_in)
    return output


_OPERATIONS = (
    *(torch.conv1d, _aten.conv1d.default, _aten.conv1d.padding),
    *(torch.conv2d, _aten.conv2d.default, _aten.conv2d.padding),
    *(torch.conv3d, _aten.conv3d.default, _aten.conv3d.padding),
    *(torch.conv_transpose1d, _aten.conv_transpose1d.default),
    *(torch.conv_transpose2d, _aten.conv_transpose2d.input),
    *(torch.conv_transpose3d, _aten.conv_transpose3d.input),
    *(torch.convolution, _aten.convolution.default),
)
RULES: Rules = {run: partial(convolution, run) for run in _OPERATIONS}


def _made_of_the_batch(
    make: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A frozen layer on what wants no gradient: a norm behind keeps the input, if it is smaller.

    It is not kept for that alone, or a frozen prefix would hold the inputs of many layers at once.
    """
    output = make(input, weight, bias)
    if input.nbytes < output.nbytes and is_cheap(output, weight):
        note(output, make, weakref.ref(input), weight, *(() if bias is None else (bias,)))
    return output
