"""Frozen weights kept in half the bits, and what that does to the model's output on an example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.calling import call_with
from frostline.errors import FreezeError
from frostline.modes import modes_kept
from frostline.narrowing import Kept, narrow_all, wanted_dtype, wide_again_on_error
from frostline.selectors import Selection

NarrowDtype = Literal["bfloat16", "float16"]


def asked_dtype(word: str | None, example: object) -> torch.dtype | None:
    """The dtype that was asked for, if one was.

    Raises:
        FreezeError: it is none in which weights are kept, or there is an example without it.
    """
    if word is not None:
        return wanted_dtype(word)
    if example is not None:
        raise FreezeError(
            "an example is for measuring what dtype does to the output, and there is no dtype. "
            "Add dtype='bfloat16', or leave the example out."
        )
    return None


def shrink(selection: Selection, dtype: torch.dtype, example: Any = None) -> Kept:
    """Keep the frozen weights that are selected in `dtype`, and measure what that does.

    Args:
        example: one batch: a tensor, a tuple of positional arguments, or a dict of keyword ones.

    Raises:
        FreezeError: a weight cannot be kept so, or the model cannot compute with it on the
            example. The weights are as they were.
    """
    if example is None:
        return narrow_all(selection.entries, dtype)
    model = selection.inventory.model
    before = _output(model, example)
    with wide_again_on_error(selection.entries):
        kept = narrow_all(selection.entries, dtype)
        try:
            after = _output(model, example)
        except Exception as error:  # whatever the model's own forward does with another dtype
            raise FreezeError(
                f"{type(model).__name__} cannot compute with weights kept in {dtype}: {error}. "
                "Its forward reads the weight of a submodule itself; leave that one out."
            ) from error
    size = float(before.norm())
    return replace(kept, output_error=float((after - before).norm()) / size if size else 0.0)


def _output(model: nn.Module, example: Any) -> Tensor:
    """All numbers of the model's output in eval mode, in a row."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        found = call_with(model, example)
    values = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return torch.cat([value.double().flatten() for value in values if value.is_floating_point()])
