"""Which weights are kept narrow: the note on their modules, narrowing, widening and its error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from frostline.narrowing.calls import Narrow, hang, notes_of
from frostline.units import format_bytes

Home = tuple[nn.Module, str, nn.Module | None]


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """What narrowing brought and what it cost.

    Attributes:
        dtype: in which the weights are kept.
        tensors: how many are.
        nbytes: their bytes now.
        former_nbytes: their bytes before.
        weight_error: the largest relative distance (in norm) of a weight from what it was.
        worst: name of that weight.
        output_error: the relative distance (in norm) of the model's output on the example from
            what it was; none without an example.
    """

    dtype: torch.dtype
    tensors: int
    nbytes: int
    former_nbytes: int
    weight_error: float
    worst: str
    output_error: float | None = None

    def __str__(self) -> str:
        word = str(self.dtype).removeprefix("torch.")
        if not self.tensors:
            return f"no weight was left to be kept in {word}"
        text = (
            f"{self.tensors} weights kept in {word}: {format_bytes(self.nbytes)} instead of "
            f"{format_bytes(self.former_nbytes)}; rounding moved them by up to "
            f"{self.weight_error:.2g} ({self.worst})"
        )
        if self.output_error is not None:
            text += f", the output by {self.output_error:.2g}"
        return text


def narrow_of(owner: nn.Module, leaf: str) -> Narrow | None:
    """How the module's own tensor of that name is kept, if narrow."""
    return notes_of(owner).get(leaf)


def narrow(tensor: Tensor, homes: Iterable[Home], note: Narrow) -> None:
    """Keep `tensor` as the note says from now on.

    Args:
        homes: each module that owns it, its name there, and the module above that.
    """
    tensor.data = tensor.data.to(note.kept)
    for owner, leaf, above in homes:
        hang(owner, leaf, note, above)


def widen(tensor: Tensor, homes: Iterable[Home]) -> None:
    """Keep `tensor` in its former dtype again, with the values that rounding left."""
    for owner, leaf, above in homes:
        note = narrow_of(owner, leaf)
        if note is not None and tensor.dtype == note.kept:
            tensor.data = tensor.data.to(note.former)
        hang(owner, leaf, None, above)


def rounding_of(tensor: Tensor, dtype: torch.dtype) -> float:
    """How far the tensor would be from what it is, relative to its norm; infinite on overflow."""
    wide = tensor.detach()
    narrow = wide.to(dtype)
    if not bool(torch.isfinite(narrow).all()) and bool(torch.isfinite(wide).all()):
        return float("inf")
    size = float(wide.norm())
    return float((narrow.to(wide.dtype) - wide).norm()) / size if size else 0.0
