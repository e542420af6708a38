"""The gradients switch of one tensor, whole or in rows, with the marks that say who threw it.

Three states: free; frozen whole (it wants no gradient, its owners' marks name it); frozen in some
rows (it wants gradients, and the rows are held, see rows.py). Freezing all rows of a tensor,
at once or bit by bit, is freezing it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn

from frostline.casting import keep_narrow, kept_narrow
from frostline.casting.calls import Narrow
from frostline.errors import FreezeError
from frostline.freezing.modes import Mark, NormPolicy, mark_of, set_mark, settle
from frostline.freezing.rows import (
    Kept,
    check_holdable,
    clear_gradient,
    held,
    held_rows,
    hold,
    kept_within,
    taken,
)
from frostline.selectors import Entry, Selection
from frostline.selectors.ranges import Ranges, all_rows, common, covers, union, without

_State = Literal["free", "whole", "partly"]


def switch_off(selection: Selection, *, norm: NormPolicy) -> None:
    """Freeze what is selected, as it is now; stale gradients are cleared.

    Raises:
        FreezeError: rows of it cannot be held.
    """
    for entry, rows in _by_tensor(selection):
        if rows is None or covers([*_frozen_rows(entry), *rows], entry.tensor):
            _turn_whole(entry, norm=norm)
        else:
            _check_holdable(entry)
            others = without(_frozen_rows(entry), rows)
            kept = kept_within(held(entry.tensor), others)
            _turn_partly(entry, (*kept, *taken(entry.tensor, rows)), norm=norm)


def switch_on(selection: Selection) -> None:
    """Thaw what is selected; the other rows of its tensors stay as frozen as they are.

    Raises:
        FreezeError: the other rows of a tensor cannot be held.
    """
    for entry, rows in _by_tensor(selection):
        left = () if rows is None else without(_frozen_rows(entry), rows)
        if not left:
            _turn_free(entry)
            continue
        _check_holdable(entry)
        keep_narrow(entry, None)  # first, since the rows are copied as they are
        kept = kept_within(held(entry.tensor), left)
        rest = taken(entry.tensor, without(left, [piece.rows for piece in kept]))
        _turn_partly(entry, (*kept, *rest), norm=None)


def is_off(entry: Entry) -> bool:
    """Whether the parameter wants no gradient; statistics go with the part frozen by hand."""
    if entry.is_parameter:
        return not entry.tensor.requires_grad
    owners = reversed(entry.occurrences[0].owners)
    part = next((o for o in owners if next(o.parameters(), None) is not None), None)
    return (
        part is not None
        and not any(parameter.requires_grad for parameter in part.parameters())
        and not any(mark_of(module) for module in part.modules())
    )


def is_marked(entry: Entry) -> bool:
    """Whether Frostline froze the tensor, or the rows of it."""
    whole = any((mark := mark_of(owner)) and leaf in mark.names for owner, leaf in _homes(entry))
    return whole or _is_held(entry)


def trains(entry: Entry) -> bool:
    """Whether an optimizer may move the tensor, or any row of the piece of it."""
    return entry.tensor.requires_grad and not _is_held(entry)


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """Gradient switches, gradients, marks, held rows and dtypes of what a selection touches.

    Modes follow the marks. What was narrowed since is widened again, with rounded values.
    """

    model: nn.Module
    tensors: tuple[tuple[Entry, bool, Tensor | None, tuple[Kept, ...], Narrow | None], ...]
    marks: tuple[tuple[nn.Module, Mark | None], ...]

    @classmethod
    def of(cls, selection: Selection) -> Snapshot:
        """Take down how it is now."""
        entries = {id(entry.tensor): entry for entry in selection.entries}.values()
        owners = {owner for entry in entries for owner, _ in _homes(entry)}
        states = (
            (e, e.tensor.requires_grad, e.tensor.grad, held(e.tensor), kept_narrow(e))
            for e in entries
        )
        marks = tuple((owner, mark_of(owner)) for owner in owners)
        return cls(selection.inventory.model, tuple(states), marks)

    def restore(self) -> None:
        """Make it so again."""
        for entry, wanted, gradient, kept, note in self.tensors:
            tensor = entry.tensor
            keep_narrow(entry, note)
            tensor.requires_grad_(wanted)
            # Inside the block the model may have been cast or moved to another device.
            tensor.grad = None if gradient is None else gradient.to(tensor.device, tensor.dtype)
            _hold(entry, kept)
        for owner, mark in self.marks:
            set_mark(owner, mark)
        settle(self.model)


def _by_tensor(selection: Selection) -> Iterator[tuple[Entry, Ranges | None]]:
    """An entry of each selected tensor, with the rows of it; `None` is the whole tensor."""
    found: dict[int, list[Entry]] = {}
    for entry in selection.entries:
        found.setdefault(id(entry.tensor), []).append(entry)
    for entries in found.values():
        pieces = [entry.rows for entry in entries if entry.rows is not None]
        yield entries[0], union(pieces) if pieces else None


def _turn_whole(entry: Entry, *, norm: NormPolicy) -> None:
    if entry.tensor.requires_grad:
        entry.tensor.requires_grad_(False)
    entry.tensor.grad = None
    _hold(entry, ())
    _mark(entry, "whole", norm=norm)


def _turn_partly(entry: Entry, kept: tuple[Kept, ...], *, norm: NormPolicy | None) -> None:
    _want_gradients(entry)
    if entry.tensor.grad is not None:
        # Another one, since a snapshot may have to give the present one back.
        entry.tensor.grad = entry.tensor.grad.detach().clone()
    _hold(entry, kept)
    clear_gradient(entry.tensor)
    _mark(entry, "partly", norm=norm)


def _turn_free(entry: Entry) -> None:
    keep_narrow(entry, None)
    _want_gradients(entry)
    _hold(entry, ())
    _mark(entry, "free", norm=None)


def _check_holdable(entry: Entry) -> None:
    name = entry.occurrences[0].name
    check_holdable(entry.tensor, name)
    above = (type(owner).__name__ for place in entry.occurrences for owner in place.owners)
    if "FullyShardedDataParallel" in above:
        raise FreezeError(
            f"no rows of {name} can be held: FullyShardedDataParallel flattens and shards it. "
            "Freeze it whole, or train it without sharding."
        )


def _want_gradients(entry: Entry) -> None:
    if entry.is_parameter and _can_train(entry.tensor):
        entry.tensor.requires_grad_(True)


def _hold(entry: Entry, kept: tuple[Kept, ...]) -> None:
    homes = [(place.owner, _leaf_of(place.name), place.name) for place in entry.occurrences]
    hold(entry.tensor, homes, kept)


def _mark(entry: Entry, state: _State, *, norm: NormPolicy | None) -> None:
    """Note the state on each owner; without a norm policy, each keeps the one that it has."""
    for owner, leaf in _homes(entry):
        mark = mark_of(owner) or Mark(frozenset())
        names, partly = mark.names - {leaf}, mark.partly - {leaf}
        if state == "whole":
            names |= {leaf}
        elif state == "partly":
            partly |= {leaf}
        contents = {name: known for name, known in mark.contents.items() if name in names}
        set_mark(owner, Mark(names, norm or mark.norm, partly, contents))


def _homes(entry: Entry) -> Iterator[tuple[nn.Module, str]]:
    for place in entry.occurrences:
        yield place.owner, _leaf_of(place.name)


def _leaf_of(name: str) -> str:
    return name.rpartition(".")[2]


def _frozen_rows(entry: Entry) -> Ranges:
    """The rows of the tensor that are frozen now: all, where it is frozen whole or by hand."""
    marks = ((mark_of(owner), leaf) for owner, leaf in _homes(entry))
    whole = any(mark and leaf in mark.names for mark, leaf in marks)
    by_hand = _can_train(entry.tensor) and not entry.tensor.requires_grad
    return (all_rows(entry.tensor),) if whole or by_hand else held_rows(entry.tensor)


def _is_held(entry: Entry) -> bool:
    rows = (all_rows(entry.tensor),) if entry.rows is None else (entry.rows,)
    return bool(union(rows)) and common(rows, held_rows(entry.tensor)) == union(rows)


def _can_train(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
