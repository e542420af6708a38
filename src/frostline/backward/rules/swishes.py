"""SiLU, hard swish and Mish keep their input; their output can be computed from it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.backward.recomputing import keeping, note
from frostline.backward.settings import Settings
from frostline.backward.tensors import is_spared

_aten = torch.ops.aten
_nn = torch._C._nn
Swish = Callable[[Tensor], Tensor]


def swish(run: Swish, settings: Settings, input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.silu`, `hardswish`, `mish`."""
    if not is_spared(input, settings):
        return None
    if inplace:
        return _written_over(run, input)
    output = run(input)
    note(output, run, input)
    return output


def swish_(run: Swish, settings: Settings, input: Tensor) -> Tensor | None:
    """`aten.silu_`, `hardswish_`, `mish_`."""
    return swish(run, settings, input, True)


RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.silu: partial(swish, _nn.silu),
    F.hardswish: partial(swish, _nn.hardswish),
    F.mish: partial(swish, _nn.mish),
    _aten.silu.default: partial(swish, _nn.silu),
    _aten.hardswish.default: partial(swish, _nn.hardswish),
    _aten.mish.default: partial(swish, _nn.mish),
    _aten.silu_.default: partial(swish_, _nn.silu),
    _aten.hardswish_.default: partial(swish_, _nn.hardswish),
    _aten.mish_.default: partial(swish_, _nn.mish),
}

_IN_PLACE: dict[Swish, Swish] = {
    _nn.silu: _nn.silu_,
    _nn.hardswish: _nn.hardswish_,
    _nn.mish: _nn.mish_,
}


def _written_over(run: Swish, input: Tensor) -> Tensor:
    """PyTorch keeps a copy of what is written over: the output can be computed from that."""
    copies: list[Tensor] = []
    output = keeping(lambda: _IN_PLACE[run](input), copies.append)
    if len(copies) == 1:
        note(output, run, copies[0])
    return output
