"""SiLU and hard swish keep their input; their output can be computed from it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frostline.backward import again
from frostline.backward.settings import Settings
from frostline.backward.tensors import is_ordinary, is_worth, wants

_aten = torch.ops.aten
Swish = Callable[[Tensor], Tensor]


def swish(run: Swish, settings: Settings, input: Tensor, inplace: bool = False) -> Tensor | None:
    """`torch.nn.functional.silu`, `hardswish`."""
    if not wants(input) or not is_ordinary(input) or not is_worth(input, settings):
        return None
    if not inplace:
        output = run(input)
        again.note(output, run, input)
        return output
    # PyTorch keeps a copy of what it writes over.
    output, kept = again.caught(partial(_IN_PLACE[run], input))
    if len(kept) == 1:
        again.note(output, run, kept[0])
    return output


def swish_(run: Swish, settings: Settings, input: Tensor) -> Tensor | None:
    """`aten.silu_`, `aten.hardswish_`."""
    return swish(run, settings, input, True)


_SILU: Swish = torch._C._nn.silu
_HARDSWISH: Swish = torch._C._nn.hardswish
_IN_PLACE: dict[Swish, Swish] = {
    _SILU: torch._C._nn.silu_,
    _HARDSWISH: torch._C._nn.hardswish_,
}

RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.silu: partial(swish, _SILU),
    _aten.silu.default: partial(swish, _SILU),
    _aten.silu_.default: partial(swish_, _SILU),
    F.hardswish: partial(swish, _HARDSWISH),
    _aten.hardswish.default: partial(swish, _HARDSWISH),
    _aten.hardswish_.default: partial(swish_, _HARDSWISH),
}
