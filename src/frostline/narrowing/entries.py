"""Narrowing what a selection holds: which of its tensors, refusals first, and what it brought."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from frostline.errors import FreezeError
from frostline.narrowing.calls import Narrow
from frostline.narrowing.weights import Home, Kept, narrow, narrow_of, rounding_of, widen
from frostline.selectors import Entry, inventory

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


def narrow_names(model: nn.Module) -> dict[str, str]:
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
