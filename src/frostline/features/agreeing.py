"""What processes that extract together have in common: decisions, the key, the ids of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import torch
from torch import nn

from frostline.cutting import Cut, KeptLines, cut, keep_cut, kept_cut
from frostline.data import Samples
from frostline.errors import ConfigError, CutError, FrostlineError
from frostline.features.computing import Computing, plain_of, realised_later, tuned_of
from frostline.features.padding import Padding, padding_of
from frostline.store import Pads
from frostline.world import World, agreed, decided, gathered, gathered_bytes, gathered_names

# Parts of a key that differ where processors do: then each kind has rows of its own.
_OF_MACHINES: Final = ("kernels", "threads")
_ID_BYTES: Final = 16

_Found = TypeVar("_Found")
_Plain = TypeVar("_Plain")


def of_first(world: World, decide: Callable[[], _Plain], *, cut: Cut) -> _Plain:
    """What `decide` gives in the first process, for all: plain data, as JSON gives them back.

    The first process alone calls it, and what it raises all raise; all call it where they call
    the prefix of `cut` as one.
    """
    found: _Plain = decided(world, _tried(world, decide, cut))
    return found


def _tried(world: World, decide: Callable[[], _Found], cut: Cut) -> _Found | None:
    """The same of anything; None in processes that did not call it."""
    found, failed = None, None
    if world.rank == 0 or cut.prefix.in_step:
        try:
            found = decide()
        except FrostlineError as error:
            failed = error
    agreed(world, failed)
    return found


def cut_by_all(
    world: World,
    model: nn.Module,
    few: Any,
    *,
    lines: KeptLines | None = None,
    facts: Mapping[str, float] | None = None,
) -> Cut:
    """The cut of this process's model; where one process finds none, none has.

    Args:
        few: a batch of inputs.
        lines: where lines of this model are kept, of one process alone.
        facts: to keep with its line.
    """
    failed = None
    if lines is not None and (found := kept_cut(model, few, lines)) is not None:
        return found[0]
    try:
        made = cut(model, few)
        if lines is not None:
            keep_cut(model, few, lines, facts or {})
    except CutError as error:
        failed = error
    agreed(world, failed)
    return made


def computing_of_first(
    world: World, cut: Cut, choose: Callable[[], Computing], device: torch.device
) -> Computing:
    """How to compute the prefix, as the first process chooses; on the device of each."""
    own = _tried(world, choose, cut)
    told = decided(world, own and [plain_of(own.tuned), own.exact, own.whole])
    if own is not None:
        return own
    plain, exact, whole = told
    return replace(realised_later(cut, tuned_of(plain), device), exact=exact, whole=whole)


def padding_of_first(world: World, cut: Cut, samples: Samples, device: torch.device) -> Padding:
    """How samples of different lengths are padded, as the first process finds by trying."""
    own = _tried(world, lambda: padding_of(cut, samples, device), cut)
    if world.size == 1 and own is not None:
        return own
    told = decided(world, own and _plain_padding(own))
    count, fills, at_start, difference, varying, form = told
    is_first = own is not None and world.rank == 0
    lengths = torch.tensor(own.lengths if own and is_first else [0] * count, dtype=torch.long)
    return Padding(
        world.sum(lengths).tolist() if count else (),
        Pads(tuple(fills), at_start),
        difference,
        tuple(varying),
        None if form is None else tuple(map(tuple, form)),
    )


def _plain_padding(padding: Padding) -> list[Any]:
    pads = padding.pads
    found = [len(padding.lengths), pads.fills, pads.at_start]
    return [*found, padding.difference, padding.varying, padding.form]


def check_alike(world: World, parts: Mapping[str, str]) -> None:
    """Make sure that all processes are about to compute the same.

    Raises:
        ConfigError: in all, where a part of one process is another than the first's.
    """
    own = json.dumps({name: text for name, text in parts.items() if name not in _OF_MACHINES})
    first, *others = map(json.loads, gathered_names(world, [own]))
    for rank, other in enumerate(others, 1):
        if different := [name for name in first if other.get(name) != first[name]]:
            raise ConfigError(
                f"process {rank} would compute other features than process 0: they differ in "
                f"{' and '.join(different)}. Give all processes the same data, and the same "
                "weights: load them, or seed torch before the model is made."
            )


def anywhere(world: World, here: bool) -> bool:
    """Whether something is so in any process."""
    return bool(world.sum(torch.tensor([float(here)], dtype=torch.float64)))


def own_part(world: World, place: str, count: int) -> range:
    """Which of so many parts are those of this process's place; all, where it is the only one.

    Args:
        place: the same for processes that see each other's work as it is done; empty where they
            do not divide it.
    """
    places = gathered_names(world, [place])
    if not place or len(set(places)) == 1:
        return range(count)
    before = sum(places.count(other) for other in dict.fromkeys(places[: places.index(place)]))
    return range(count * before // world.size, count * (before + places.count(place)) // world.size)


def shared_ids(world: World, samples: Samples, rows: range) -> list[bytes]:
    """The ids of rows; each process finds a share of them."""
    ends = [len(rows) * rank // world.size for rank in range(world.size + 1)]
    return _gathered_ids(world, samples.ids(rows[ends[world.rank] : ends[world.rank + 1]]))


def exchanged(world: World, own: Mapping[int, bytes]) -> dict[int, bytes]:
    """Row -> id of what all processes found out."""
    if world.size == 1:
        return dict(own)
    rows = gathered(world, torch.tensor(list(own), dtype=torch.long))
    return dict(zip(rows.tolist(), _gathered_ids(world, own.values()), strict=True))


def _gathered_ids(world: World, own: Iterable[bytes]) -> list[bytes]:
    every = gathered_bytes(world, b"".join(own))
    return [every[at : at + _ID_BYTES] for at in range(0, len(every), _ID_BYTES)]
