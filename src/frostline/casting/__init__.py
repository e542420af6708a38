"""Weight casting: frozen weights kept in half the bits, and computed with in their own.

The parameter stays the same object; its data are bfloat16 or float16. Hooks on the module that owns
it put a wide copy in its place for the time of each call (`calls`); which tensors are kept so, and
in what they were before, stands in a note on that module, so that it goes along through
`copy.deepcopy` and `torch.save`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.calling import call_with
from frostline.casting.calls import Narrow, hang, notes_of
from frostline.errors import FreezeError
from frostline.selectors import Entry, Selection, inventory
from frostline.units import format_bytes

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def wanted_dtype(word: str) -> torch.dtype:
    """The dtype that a user's word names.

    Raises:
        FreezeError: it is none in which weights are kept.
    """
    if word not in _DTYPES:
        raise FreezeError(
            f"dtype={word!r} is none in which frozen weights are kept. Use dtype='bfloat16' or "
            "dtype='float16', or leave it out to keep them as they are."
        )
    return _DTYPES[word]


def is_narrow_dtype(word: str) -> bool:
    """Whether the word names a dtype in which weights are kept."""
    return word in _DTYPES


def kept_narrow(entry: Entry) -> Narrow | None:
    """How the tensor is kept, if in fewer bits than it is computed with."""
    notes = (narrow_of(owner, leaf) for owner, leaf, _ in _homes(entry))
    return next((note for note in notes if note is not None), None)


def cast_dtypes(model: nn.Module) -> dict[str, str]:
    """Names of the model's parameters that are kept narrow -> in which dtype."""
    notes = ((entry.name, kept_narrow(entry)) for entry in inventory(model).entries)
    return {name: str(n.kept).removeprefix("torch.") for name, n in notes if n is not None}


def keep_narrow(entry: Entry, note: Narrow | None) -> None:
    """Keep the tensor so from now on; `None` widens it, with the values that rounding left."""
    if kept_narrow(entry) == note:
        return
    widen(entry.tensor, list(_homes(entry)))
    if note is not None:
        narrow(entry.tensor, list(_homes(entry)), note)


def narrow_all(entries: Iterable[Entry], dtype: torch.dtype) -> Kept:
    """Keep in `dtype` the wide weights among the frozen entries, all or none of them.

    Weights are tensors of two dimensions and more. Vectors (biases, the scales of norms) stay as
    they are: they are few bytes, and rounding one moves a whole channel.

    Raises:
        FreezeError: rows of a tensor are selected, or one is sharded, without data, or has numbers
            that are too large for `dtype`; names it.
    """
    chosen = list(entries)
    for entry in chosen:
        if entry.rows is not None:
            raise FreezeError(
                f"rows of {entry.occurrences[0].name} cannot be kept in another dtype: they stand "
                "in a tensor that trains. Freeze it whole, or freeze the rows without dtype."
            )
    due = [entry for entry in chosen if _is_wide_weight(entry)]
    errors = [_rounding(entry, dtype) for entry in due]
    before = sum(entry.tensor.nbytes for entry in due)
    for entry in due:
        keep_narrow(entry, Narrow(dtype, entry.tensor.dtype))
    worst = max(range(len(due)), key=errors.__getitem__, default=None)
    return Kept(
        dtype,
        len(due),
        sum(entry.tensor.nbytes for entry in due),
        before,
        0.0 if worst is None else errors[worst],
        "" if worst is None else due[worst].name,
    )


@contextmanager
def wide_again_on_error(entries: Sequence[Entry]) -> Iterator[None]:
    """Should the block fail, the tensors have every bit and the dtype that they had before."""
    before = [(entry, entry.tensor.data, kept_narrow(entry)) for entry in entries]
    try:
        yield
    except BaseException:
        for entry, data, note in before:
            keep_narrow(entry, note)
            entry.tensor.data = data
        raise


def _is_wide_weight(entry: Entry) -> bool:
    wide = entry.tensor.dtype in (torch.float32, torch.float64)
    return entry.is_parameter and wide and entry.tensor.dim() > 1


def _rounding(entry: Entry, dtype: torch.dtype) -> float:
    tensor, word = entry.tensor, str(dtype).removeprefix("torch.")
    kind = type(tensor)
    plain = kind is Tensor or (issubclass(kind, nn.Parameter) and kind.__name__ != "FlatParameter")
    if not plain or tensor.is_meta or tensor.layout is not torch.strided:
        what = "without data" if tensor.is_meta else f"a {kind.__name__}" if not plain else "sparse"
        raise FreezeError(
            f"{entry.name} cannot be kept in {word}: it is {what}. Freeze plain tensors with their "
            "data loaded, before any sharding."
        )
    error = rounding_of(tensor, dtype)
    if error == float("inf"):
        raise FreezeError(
            f"{entry.name} holds numbers that are too large for {word}. Use dtype='bfloat16', "
            "which reaches as far as float32."
        )
    return error


def _homes(entry: Entry) -> Iterator[Home]:
    for place in entry.occurrences:
        above = place.owners[-2] if len(place.owners) > 1 else None
        yield place.owner, place.name.rpartition(".")[2], above


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
    before = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            found = call_with(model.eval(), example)
    finally:
        for module, training in before:
            module.training = training
    values = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return torch.cat([value.double().flatten() for value in values if value.is_floating_point()])
