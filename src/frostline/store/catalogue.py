"""Which rows of a key are complete, where they lie, and whether their bytes are those written.

Bytes are read to be checked, never mapped: an unreadable sector is then a damaged row and not a
dead process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, final

import numpy as np
import xxhash

from frostline.store.keys import ValueSpec
from frostline.store.layout import ROWS, open_own, segment_folders, value_name
from frostline.store.manifest import Manifest
from frostline.store.records import (
    Integers,
    Log,
    Mask,
    Records,
    data_bytes,
    ids,
    leading_shapes,
    parse,
    record_dtype,
    unit_offsets,
)

CHUNK_BYTES: Final = 4 << 20
_LONGEST_EMPTY: Final = 1 << 20  # a row without bytes may still be long
_PLACE_BITS: Final = 40


def damaged(
    segment: Path, number: int, value: ValueSpec, records: Records, places: Integers
) -> Mask:
    """Which rows' bytes of one value do not match the checksum in their record."""
    offsets, counts = unit_offsets(value, number, records, places)
    starts, sizes = data_bytes(value, offsets, counts)
    order = np.argsort(starts, kind="stable")
    bad = np.ones(len(records), dtype=np.bool_)
    try:
        with open_own(segment / value_name(number)) as file:
            end = file.seek(0, 2)
            fits = starts + sizes <= end
            if value.ragged_count:
                lengths = leading_shapes(value, number, records)
                fits &= lengths.max(axis=1, initial=0) <= max(end, _LONGEST_EMPTY)
            order = order[fits[order]]
            found = _sums(file, starts[order], sizes[order])
    except OSError:
        return bad
    matches = [a == b for a, b in zip(found, records[f"sum{number}"][order].tolist(), strict=True)]
    bad[order] = ~np.array(matches, dtype=np.bool_)
    return bad


def _sums(file: FileIO, starts: Integers, sizes: Integers) -> list[int | None]:
    """Checksums of the pieces, which come in order; `None` where one cannot be read."""
    if not len(starts):
        return []
    ends = starts + sizes
    large = sizes > CHUNK_BYTES
    breaks = (starts[1:] != ends[:-1]) | (starts[1:] // CHUNK_BYTES != starts[:-1] // CHUNK_BYTES)
    breaks |= large[1:] | large[:-1]
    firsts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
    found: list[int | None] = []
    room = np.empty(2 * CHUNK_BYTES, dtype=np.uint8).data
    for first, last in zip(firsts, [*firsts[1:], len(starts)], strict=True):
        begin = int(starts[first])
        if large[first]:  # alone in its run
            found.append(_sum_in_pieces(file, begin, int(ends[first]), room))
            continue
        content = room[: int(ends[last - 1]) - begin]
        if not _fill(file, begin, content):
            found += [None] * (last - first)
            continue
        cuts = (ends[first:last] - begin).tolist()
        hashed = xxhash.xxh3_64_intdigest
        found += [hashed(content[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    return found


def _sum_in_pieces(file: FileIO, begin: int, end: int, room: memoryview) -> int | None:
    """Checksum of a piece that is not to be held in memory at once."""
    state = xxhash.xxh3_64()
    for at in range(begin, end, len(room)):
        content = room[: min(len(room), end - at)]
        if not _fill(file, at, content):
            return None
        state.update(content)
    return state.intdigest()


def _fill(file: FileIO, start: int, room: memoryview) -> bool:
    """Read into all of `room`; gives whether the disk had that much."""
    done = 0
    try:
        file.seek(start)
        while done < len(room):
            count = file.readinto(room[done:])
            if not count:
                return False
            done += count
    except OSError:
        return False
    return True


@final
@dataclass(frozen=True, slots=True)
class Flaw:
    """A row's data that do not match their checksum."""

    segment: Path
    value: str
    row_id: bytes


@final
class SegmentRows:
    """One segment's log as far as it was read."""

    __slots__ = ("_identity", "_values", "folder", "log")

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._values, self._identity = manifest.values, manifest.identity
        self.log: Log = parse(self._values, b"", identity=self._identity)

    def read_on(self) -> int:
        """Take in what was appended since; gives the number of the first new record."""
        known = len(self.log.records)
        try:
            with open_own(self.folder / ROWS) as file:
                file.seek(known * record_dtype(self._values).itemsize)
                raw = file.read()
        except OSError:
            return known
        new = parse(self._values, raw, identity=self._identity, first=known)
        self.log = Log(
            np.concatenate([self.log.records, new.records]),
            np.concatenate([self.log.sound, new.sound]),
            np.concatenate([self.log.void, new.void]),
        )
        return known


@final
class Catalogue:
    """The complete rows of a key: row id -> its records, the one last read first.

    Holds no data and no open file. Data are trusted until `check` is asked.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self.segments: list[SegmentRows] = []
        self._known: set[Path] = set()
        self._place: dict[bytes, int] = {}
        self._others: dict[bytes, list[int]] = {}

    @property
    def values(self) -> tuple[ValueSpec, ...]:
        """What a row holds."""
        return self._manifest.values

    def __contains__(self, row_id: bytes) -> bool:
        return row_id in self._place

    def __len__(self) -> int:
        return len(self._place)

    def row_ids(self) -> list[bytes]:
        """Every complete row."""
        return list(self._place)

    def refresh(self, *, without: Path | None = None) -> None:
        """Take in new segments and new records, but those of the segment `without`."""
        for path in segment_folders(self._folder):
            if path not in self._known and path != without:
                self._known.add(path)
                self.segments.append(SegmentRows(path, self._manifest))
        for number, segment in enumerate(self.segments):
            self._take_in(number, segment)

    def check(self, row_ids: Iterable[bytes]) -> list[Flaw]:
        """Check the data of complete rows against their checksums, and forget what is damaged.

        A row that was stored twice is complete as long as one copy is intact; the flaws of the
        other are not given.
        """
        flaws: dict[bytes, Flaw] = {}
        pending = [row_id for row_id in row_ids if row_id in self._place]
        while pending:
            found = self._damaged(pending)
            for flaw in found:
                self._forget(flaw.row_id)
                flaws[flaw.row_id] = flaw
            pending = [flaw.row_id for flaw in found if flaw.row_id in self._place]
        return [flaw for row_id, flaw in flaws.items() if row_id not in self._place]

    def places(self, row_ids: Sequence[bytes]) -> tuple[Integers, Integers]:
        """The segment and the record of each row; all must be complete."""
        find = self._place
        codes = np.fromiter((find[row_id] for row_id in row_ids), np.int64, len(row_ids))
        return codes >> _PLACE_BITS, codes & ((1 << _PLACE_BITS) - 1)

    def _take_in(self, number: int, segment: SegmentRows) -> None:
        first = segment.read_on()
        log = segment.log
        fresh = np.flatnonzero(log.sound[first:]) + first
        codes = (fresh + (number << _PLACE_BITS)).tolist()
        found = dict(zip(ids(log.records[fresh]), codes, strict=True))
        if len(found) < len(codes) or not found.keys().isdisjoint(self._place):
            for row_id, code in zip(ids(log.records[fresh]), codes, strict=True):
                if row_id in self._place:
                    self._others.setdefault(row_id, []).append(self._place[row_id])
                self._place[row_id] = code
        else:
            self._place.update(found)

    def _forget(self, row_id: bytes) -> None:
        others = self._others.get(row_id)
        if others:
            self._place[row_id] = others.pop()
        else:
            del self._place[row_id]

    def _damaged(self, row_ids: Sequence[bytes]) -> list[Flaw]:
        segments, places = self.places(row_ids)
        flaws: dict[bytes, Flaw] = {}
        for at in np.unique(segments).tolist():
            here = np.flatnonzero(segments == at)
            folder = self.segments[at].folder
            records = self.segments[at].log.records[places[here]]
            for number, value in enumerate(self.values):
                bad = here[damaged(folder, number, value, records, places[here])]
                for position in bad.tolist():
                    row_id = row_ids[position]
                    flaws.setdefault(row_id, Flaw(folder, value.name, row_id))
        return list(flaws.values())
