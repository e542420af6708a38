"""Row ids and their places in arrays: 32 bytes a row, and no Python object for any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias, final

import numpy as np
import numpy.typing as npt

from frostline.errors import StoreError
from frostline.store.records import ID_BYTES, Integers, Mask, Records

Keys: TypeAlias = npt.NDArray[np.uint64]  # `(rows, 2)`: the 16 bytes of each id as two numbers

NOWHERE: Final = -1
_RATIO: Final = 8  # of the lengths of two runs
# Odd, so that ids which differ in one half only never meet; whoever counts up in both is told
# apart by the whole id.
_MIX: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


def row_keys(row_ids: Sequence[bytes]) -> Keys:
    """Ids as an array.

    Raises:
        StoreError: an id is not 16 bytes long.
    """
    raw = b"".join(row_ids)
    if len(raw) != ID_BYTES * len(row_ids) or any(len(each) != ID_BYTES for each in row_ids):
        wrong = next(each for each in row_ids if len(each) != ID_BYTES)
        raise StoreError(
            f"a row id is {ID_BYTES} bytes, and one of {len(wrong)} was given: {wrong!r}. "
            "Use a 128-bit hash of the sample and its view."
        )
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 2)


def record_keys(records: Records) -> Keys:
    """The ids of records."""
    return np.ascontiguousarray(records["id"]).view("<u8").reshape(-1, 2)


def key_bytes(keys: Keys) -> list[bytes]:
    """The ids of an array."""
    raw = keys.tobytes()
    return [raw[at : at + ID_BYTES] for at in range(0, len(raw), ID_BYTES)]


def first_places(keys: Keys) -> Integers:
    """Where each distinct id stands first, in order."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable
    ranked = keys[order]
    is_first = np.ones(len(keys), dtype=np.bool_)
    is_first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.sort(order[is_first])


@final
class RowIndex:
    """Ids -> places. An id may have several; the one that was added last is found.

    Sorted runs, each more than eight times as long as the next: few, since many look-ups are of few
    rows, so that the search in each run costs more than the merges do.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []  # the newest last

    def __len__(self) -> int:
        """How many distinct ids there are."""
        if len(self._runs) > 1:
            self._runs = [_joined(self._runs)]
        return int(self._runs[0].distinct().sum()) if self._runs else 0

    def keys(self) -> Keys:
        """Every distinct id."""
        if not len(self):
            return np.empty((0, 2), dtype=np.uint64)
        run = self._runs[0]
        return run.keys[run.distinct()]

    def add(self, keys: Keys, places: Integers) -> None:
        """Take in ids with their places."""
        if not len(keys):
            return
        new = _sorted(keys[::-1], places[::-1])
        while self._runs and len(self._runs[-1].codes) <= _RATIO * len(new.codes):
            new = _joined([self._runs.pop(), new])
        self._runs.append(new)

    def find(self, keys: Keys) -> Integers:
        """The place of each id; `NOWHERE` if it has none."""
        places = np.full(len(keys), NOWHERE, dtype=np.int64)
        codes = _codes(keys)
        pending = np.argsort(codes)  # searches that go on from each other stay in the cache
        for run in reversed(self._runs):
            found = run.find(keys[pending], codes[pending])
            hit = found != NOWHERE
            places[pending[hit]] = run.places[found[hit]]
            pending = pending[~hit]
            if not len(pending):
                break
        return places

    def has(self, keys: Keys) -> Mask:
        """Whether each id is there."""
        found: Mask = self.find(keys) != NOWHERE
        return found

    def forget(self, keys: Keys) -> None:
        """Take away the places at which `find` finds these ids; older ones are found then."""
        codes = _codes(keys)
        pending = np.ones(len(keys), dtype=np.bool_)
        for number in reversed(range(len(self._runs))):
            run = self._runs[number]
            found = run.find(keys, codes)
            gone = found[pending & (found != NOWHERE)]
            pending &= found == NOWHERE
            kept = np.ones(len(run.codes), dtype=np.bool_)
            kept[gone] = False
            self._runs[number] = _Run(run.codes[kept], run.keys[kept], run.places[kept])


@final
class _Run:
    """Ids by their codes; of those with one code the newest first."""

    __slots__ = ("codes", "keys", "places")

    def __init__(self, codes: npt.NDArray[np.uint64], keys: Keys, places: Integers) -> None:
        self.codes, self.keys, self.places = codes, keys, places

    def find(self, keys: Keys, codes: npt.NDArray[np.uint64]) -> Integers:
        """Where in the run each id stands first."""
        found = np.full(len(keys), NOWHERE, dtype=np.int64)
        if not len(self.codes):
            return found
        at, pending = np.searchsorted(self.codes, codes), np.arange(len(keys))
        while len(pending):  # once, but for different ids with one code
            inside = at < len(self.codes)
            at, pending = at[inside], pending[inside]
            same = self.codes[at] == codes[pending]
            at, pending = at[same], pending[same]
            hit = (self.keys[at] == keys[pending]).all(axis=1)
            found[pending[hit]] = at[hit]
            at, pending = at[~hit] + 1, pending[~hit]
        return found

    def distinct(self) -> Mask:
        """Which entries are what `find` finds, so that each id counts once."""
        alone = np.ones(len(self.codes), dtype=np.bool_)
        alone[1:] = self.codes[1:] != self.codes[:-1]
        doubtful = np.flatnonzero(~alone)
        alone[doubtful] = self.find(self.keys[doubtful], self.codes[doubtful]) == doubtful
        return alone


def _sorted(keys: Keys, places: Integers) -> _Run:
    """A run of ids, the newest first."""
    codes = _codes(keys)
    order = np.argsort(codes, kind="stable")
    return _Run(codes[order], keys[order], places[order])


def _joined(runs: Sequence[_Run]) -> _Run:
    newest_first = runs[::-1]
    codes = np.concatenate([run.codes for run in newest_first])
    order = np.argsort(codes, kind="stable")  # finds runs that are sorted, and merges them
    return _Run(
        codes[order],
        np.concatenate([run.keys for run in newest_first])[order],
        np.concatenate([run.places for run in newest_first])[order],
    )


def _codes(keys: Keys) -> npt.NDArray[np.uint64]:
    """A number of each id to sort by."""
    return keys[:, 0] * _MIX[0] ^ keys[:, 1] * _MIX[1]
