"""The gradients switch of one tensor, whole or in rows, with the marks that say who threw it.

Three states: free; frozen whole (it wants no gradient, its owners' marks name it); frozen in some
rows (it wants gradients, and the rows are held, see rows.py). Freezing all rows of a tensor,
at once or bit by bit, is freezing it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor

from frostline.casting import cast_of, set_cast
from frostline.choices import NormPolicy
from frostline.errors import FreezeError
from frostline.freezing.modes import (
    NUMBERS,
    FrozenMark,
    hold_under,
    mark_of,
    numbers_of_holds,
    set_mark,
    settle,
)
from frostline.freezing.refusals import check_shared, unholdable, why_inert
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


def switch_off(selection: Selection, *, norm: NormPolicy) -> None:
    """Freeze what is selected, as it is now, without stale gradients; raises as `freeze`."""
    for _, why, fix in unholdable(selection):
        raise FreezeError(f"{why} {fix}")
    for entry, rows in _by_tensor(selection):
        if rows is None or covers([*_frozen_rows(entry), *rows], entry.tensor):
            if entry.tensor.requires_grad:
                entry.tensor.requires_grad_(False)
            entry.tensor.grad = None
            hold(entry.tensor, entry.occurrences, ())
            _mark(entry, "whole", norm=norm)
        else:
            others = without(_frozen_rows(entry), rows)
            _let_train(entry, kept_within(held(entry.tensor), others), rows, norm=norm)
    settle(selection.inventory.model)
    check_shared(selection.inventory.model)


def switch_on(selection: Selection) -> None:
    """Thaw what is selected, the other rows of its tensors stay as they are; raises as `thaw`."""
    places = ((p.name, p.owner) for entry in selection.entries for p in entry.occurrences)
    if why := why_inert(places, asked=str(selection.selector)):
        raise FreezeError(why)
    for entry, rows in _by_tensor(selection):
        left = () if rows is None else without(_frozen_rows(entry), rows)
        kept = kept_within(held(entry.tensor), left)
        _let_train(entry, kept, without(left, [piece.rows for piece in kept]), norm=None)
    settle(selection.inventory.model)


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
    return _is_marked_whole(entry) or _is_held(entry)


def trains(entry: Entry) -> bool:
    """Whether an optimizer may move the tensor, or any row of the piece of it."""
    return entry.tensor.requires_grad and not _is_held(entry)


@contextmanager
def restoring(
    selection: Selection,
    *,
    only_on_error: bool = False,
    gradients: bool = True,
    unmoved: bool = False,
) -> Iterator[None]:
    """After the block all that the selection touches is as before, or only if the block fails.

    Args:
        gradients: also those that its tensors have, not only whether they want any.
        unmoved: the block moves nothing for good, so that what it let go counts as held all along.
    """
    # That are gradient switches, gradients, marks, held rows and dtypes; modes follow the marks.
    # What was cast in the block is widened again, with rounded values.
    tensors = {id(entry.tensor): entry for entry in selection.entries}.values()
    owners = {place.owner for entry in tensors for place in entry.occurrences}
    marks = [(owner, mark_of(owner)) for owner in owners]
    states = [
        (e, e.tensor.requires_grad, e.tensor.grad, held(e.tensor), cast_of(e)) for e in tensors
    ]
    numbers = numbers_of_holds(selection.inventory.model)
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        if has_failed or not only_on_error:
            for entry, wanted, gradient, kept, cast in states:
                tensor = entry.tensor
                set_cast(entry, cast)
                tensor.requires_grad_(wanted)
                if gradients:
                    # Meanwhile the model may have been cast or moved to another device.
                    tensor.grad = (
                        None if gradient is None else gradient.to(tensor.device, tensor.dtype)
                    )
                hold(tensor, entry.occurrences, kept)
            for owner, mark in marks:
                set_mark(owner, mark)
            settle(selection.inventory.model)
            if only_on_error or unmoved:
                hold_under(numbers)


def _by_tensor(selection: Selection) -> Iterator[tuple[Entry, Ranges | None]]:
    """An entry of each selected tensor, with the rows of it; `None` is the whole tensor."""
    for entries in selection.by_tensor.values():
        pieces = [entry.rows for entry in entries if entry.rows is not None]
        yield entries[0], union(pieces) if pieces else None


def _let_train(
    entry: Entry, kept: tuple[Kept, ...], rows: Ranges, *, norm: NormPolicy | None
) -> None:
    """Train the tensor, but for what is kept of it and these further rows, as they are now."""
    tensor, name = entry.tensor, entry.occurrences[0].name
    if is_held := bool(kept or rows):
        check_holdable(tensor, name)
        above = (type(owner).__name__ for place in entry.occurrences for owner in place.owners)
        if "FullyShardedDataParallel" in above:
            raise FreezeError(
                f"no rows of {name} can be held: FullyShardedDataParallel flattens and shards it. "
                "Freeze it whole, or train it without sharding."
            )
    set_cast(entry, None)  # first, since the rows are copied as they are
    if entry.is_parameter and _can_train(tensor):
        tensor.requires_grad_(True)
    if is_held and tensor.grad is not None:
        # Another one, since a snapshot may have to give the present one back.
        tensor.grad = tensor.grad.detach().clone()
    hold(tensor, entry.occurrences, (*kept, *taken(tensor, rows)))
    clear_gradient(tensor)
    _mark(entry, "partly" if is_held else "free", norm=norm)


def _mark(
    entry: Entry, state: Literal["free", "whole", "partly"], *, norm: NormPolicy | None
) -> None:
    """Note the state on each owner; without a norm policy, each keeps the one that it has."""
    number = next(NUMBERS)
    for place in entry.occurrences:
        mark, own = mark_of(place.owner) or FrozenMark(frozenset()), {place.own_name}
        names = mark.names | own if state == "whole" else mark.names - own
        partly = mark.partly | own if state == "partly" else mark.partly - own
        contents = {name: known for name, known in mark.contents.items() if name in names}
        since = {name: known for name, known in mark.since.items() if name in names | partly}
        if norm is not None and not own <= mark.names:
            since |= {place.own_name: since.get(place.own_name, frozenset()) | {number}}
        set_mark(place.owner, FrozenMark(names, norm or mark.norm, partly, contents, since))


def _frozen_rows(entry: Entry) -> Ranges:
    """The rows of the tensor that are frozen now: all, where it is frozen whole or by hand."""
    by_hand = _can_train(entry.tensor) and not entry.tensor.requires_grad
    whole = by_hand or _is_marked_whole(entry)
    return (all_rows(entry.tensor),) if whole else held_rows(entry.tensor)


def _is_marked_whole(entry: Entry) -> bool:
    marks = ((mark_of(place.owner), place.own_name) for place in entry.occurrences)
    return any(mark is not None and name in mark.names for mark, name in marks)


def _is_held(entry: Entry) -> bool:
    rows = (all_rows(entry.tensor),) if entry.rows is None else (entry.rows,)
    return bool(union(rows)) and common(rows, held_rows(entry.tensor)) == union(rows)


def _can_train(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
