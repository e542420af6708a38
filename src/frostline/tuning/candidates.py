"""Which forms are worth a try for a prefix on a device, most promising first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.fx import GraphModule

from frostline.tuning.drafts import draft_of
from frostline.tuning.folding import count_foldable
from frostline.tuning.forms import DTYPES, PLAIN, DtypeName, Form
from frostline.tuning.layout import count_convolutions
from frostline.tuning.machines import fast_dtypes

# A single convolution that cuts an image into patches does not pay for the layout.
_CONVOLUTIONS_FOR_LAYOUT: Final = 2


def candidates(
    prefix: GraphModule, device: torch.device, *, tolerance: float, allow_compile: bool
) -> tuple[Form, ...]:
    """Forms to try, each different from plain float32 in this prefix.

    Dtypes whose mere rounding exceeds `tolerance`, or that the device is slow at, are left out.
    """
    draft = draft_of(prefix)
    values = draft.values.values()
    is_float32 = any(isinstance(v, Tensor) and v.dtype == torch.float32 for v in values)
    layout = count_convolutions(draft) >= _CONVOLUTIONS_FOR_LAYOUT
    folds = count_foldable(draft) > 0
    reduced = [d for d in fast_dtypes(device) if is_float32 and rounding(d) <= tolerance]
    dtypes: list[DtypeName] = [*reduced, "float32"]
    forms = [form for dtype in dtypes for form in _forms(dtype, layout=layout, folds=folds)]
    if allow_compile:
        compiled = [Form(d, layout, folds, compiled=True) for d in dtypes]
        forms = compiled + forms
    return tuple(form for form in forms if form != PLAIN)


def rounding(dtype: DtypeName) -> float:
    """A quarter of the unit roundoff: less relative error than that is luck."""
    return torch.finfo(DTYPES[dtype]).eps / 8


def _forms(dtype: DtypeName, *, layout: bool, folds: bool) -> Iterator[Form]:
    """All that apply, the one that does all at once first."""
    for channels_last in (True, False) if layout else (False,):
        for folded in (True, False) if folds else (False,):
            yield Form(dtype, channels_last, folded)
