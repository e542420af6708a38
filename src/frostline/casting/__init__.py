"""Weight casting: frozen weights kept in half the bits, and computed with in their own.

The parameter stays the same object; its data are bfloat16 or float16. Hooks on the module that owns
it put a wide copy in its place for the time of each call (`calls`); which tensors are cast, and
what they were before, stands in a note on that module, so that it goes along through
`copy.deepcopy` and `torch.save`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.calling import call_with
from frostline.casting.calls import Cast, casts_of, hang
from frostline.errors import FreezeError
from frostline.selectors import Entry, Selection, inventory
from frostline.selectors.inventory import not_plain
from frostline.tables import Displayed
from frostline.units import format_bytes

CastDtype = Literal["bfloat16", "float16"]
CAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@final
@dataclass(frozen=True, slots=True)
class CastReport(Displayed):
    """What casting weights brought and what it cost.

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
        word = _word(self.dtype)
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


def asked_dtype(word: str | None, example: object) -> torch.dtype | None:
    """The dtype that was asked for, if one was.

    Raises:
        FreezeError: it is none in which weights are kept, or there is an example without it.
    """
    if word is None and example is not None:
        raise FreezeError(
            "an example is for measuring what dtype does to the output, and there is no dtype. "
            "Add dtype='bfloat16', or leave the example out."
        )
    if word is None or word in CAST_DTYPES:
        return CAST_DTYPES.get(word or "")
    raise FreezeError(
        f"dtype={word!r} is none in which frozen weights are kept. Use dtype='bfloat16' or "
        "dtype='float16', or leave it out to keep them as they are."
    )


def cast_of(entry: Entry) -> Cast | None:
    """How the tensor is kept, if in fewer bits than it is computed with."""
    casts = (casts_of(place.owner).get(place.own_name) for place in entry.occurrences)
    return next((cast for cast in casts if cast is not None), None)


def set_cast(entry: Entry, cast: Cast | None) -> None:
    """Keep the tensor so from now on; `None` widens it, with the values that rounding left."""
    known, tensor = cast_of(entry), entry.tensor
    if known == cast:
        return
    if known is not None and tensor.dtype == known.kept:
        tensor.data = tensor.data.to(known.former)
    if cast is not None:
        tensor.data = tensor.data.to(cast.kept)
    for place in entry.occurrences:
        hang(place.owner, place.own_name, cast, place.above)


def cast_dtypes(model: nn.Module) -> dict[str, str]:
    """Names of the model's parameters that are cast -> in which dtype they are kept."""
    casts = ((entry.name, cast_of(entry)) for entry in inventory(model).entries)
    return {name: _word(cast.kept) for name, cast in casts if cast is not None}


def cast_weights(selection: Selection, dtype: torch.dtype, example: Any = None) -> CastReport:
    """Keep the frozen weights that are selected in `dtype`, all or none, and measure what it does.

    Weights are wide tensors of two dimensions and more. Vectors (biases, the scales of norms) stay
    as they are: they are few bytes, and rounding one moves a whole channel.

    Args:
        example: one batch: a tensor, a tuple of positional arguments, or a dict of keyword ones.

    Raises:
        FreezeError: rows of a tensor are selected; a weight is sharded, without data, or has
            numbers that are too large for `dtype`; or the model cannot compute with it on the
            example. The weights are as they were.
    """
    for entry in selection.entries:
        if entry.rows is not None:
            raise FreezeError(
                f"rows of {entry.occurrences[0].name} cannot be kept in another dtype: they stand "
                "in a tensor that trains. Freeze it whole, or freeze the rows without dtype."
            )
    wide = (torch.float32, torch.float64)
    parameters = [entry for entry in selection.entries if entry.is_parameter]
    due = [e for e in parameters if e.tensor.dtype in wide and e.tensor.dim() > 1]
    errors = {entry.name: _rounding(entry, dtype) for entry in due}
    model, former = selection.inventory.model, sum(entry.tensor.nbytes for entry in due)
    before = None if example is None else _output(model, example)
    unchanged = [(entry, entry.tensor.data, cast_of(entry)) for entry in due]
    try:
        for entry in due:
            set_cast(entry, Cast(dtype, entry.tensor.dtype))
        output_error = None if before is None else _output_error(model, example, before, dtype)
    except BaseException:  # every bit and the dtype as before
        for entry, data, cast in unchanged:
            set_cast(entry, cast)
            entry.tensor.data = data
        raise
    worst = max(errors, key=errors.__getitem__, default="")
    nbytes = sum(entry.tensor.nbytes for entry in due)
    error = errors.get(worst, 0.0)
    return CastReport(dtype, len(due), nbytes, former, error, worst, output_error)


def _rounding(entry: Entry, dtype: torch.dtype) -> float:
    """How far the cast tensor would be from what it is, relative to its norm."""
    if kind := not_plain(entry.tensor):
        raise FreezeError(
            f"{entry.name} cannot be kept in {_word(dtype)}: it is {kind}. Freeze plain tensors "
            "with their data loaded, before any sharding."
        )
    wide = entry.tensor.detach()
    narrow = wide.to(dtype)
    if not bool(torch.isfinite(narrow).all()) and bool(torch.isfinite(wide).all()):
        raise FreezeError(
            f"{entry.name} holds numbers that are too large for {_word(dtype)}. Use "
            "dtype='bfloat16', which reaches as far as float32."
        )
    return _distance(narrow.to(wide.dtype), wide)


def _output_error(model: nn.Module, example: Any, before: Tensor, dtype: torch.dtype) -> float:
    try:
        after = _output(model, example)
    except Exception as error:  # whatever the model's own forward does with another dtype
        raise FreezeError(
            f"{type(model).__name__} cannot compute with weights kept in {dtype}: {error}. "
            "Its forward reads the weight of a submodule itself; leave that one out."
        ) from error
    return _distance(after, before)


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


def _distance(now: Tensor, before: Tensor) -> float:
    """In norm, relative to that of `before`."""
    size = float(before.norm())
    return float((now - before).norm()) / size if size else 0.0


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
