"""Which rows of a key are complete, where they lie, and whether their bytes are those written.

Bytes are read to be checked, never mapped: an unreadable sector is then a damaged row and not a
dead process.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final, final

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
    leading_shapes,
    parse,
)
from frostline.store.row_index import NOWHERE, Keys, RowIndex, key_bytes, record_keys, row_keys

CHUNK_BYTES: Final = 1 << 20
_LONGEST_EMPTY: Final = 1 << 20  # a row without bytes may still be long
_PLACE_BITS: Final = 40
_PIECE: Final = 1 << 15  # rows that are looked at together: what they take in passing stays small


def damaged(
    segment: Path, number: int, value: ValueSpec, records: Records, places: Integers
) -> Mask:
    """Which rows' bytes of one value do not match the checksum in their record."""
    starts, sizes = data_bytes(value, number, records, places)
    longest = leading_shapes(value, number, records).max(axis=1, initial=0)
    bad = np.ones(len(records), dtype=np.bool_)
    with suppress(OSError), open_own(segment / value_name(number)) as opened:
        end = opened.seek(0, 2)
        fits = (starts + sizes <= end) & (longest <= max(end, _LONGEST_EMPTY))
        order = np.argsort(starts, kind="stable")
        order = order[fits[order]]
        columns = (order, starts[order], sizes[order], records[f"sum{number}"][order])
        file = BufferedReader(opened, CHUNK_BYTES)
        for at, start, size, total in zip(*(c.tolist() for c in columns), strict=True):
            bad[at] = _sum(file, start, size) != total
    return bad


def _sum(file: BinaryIO, start: int, size: int) -> int | None:
    """Checksum of a piece of a file, which need not fit into memory; `None` if it is unreadable."""
    try:
        file.seek(start)
        if size <= CHUNK_BYTES:
            content = file.read(size)
            return xxhash.xxh3_64_intdigest(content) if len(content) == size else None
        state = xxhash.xxh3_64()
        while size:
            content = file.read(min(size, CHUNK_BYTES))
            if not content:
                return None
            state.update(content)
            size -= len(content)
    except OSError:
        return None
    return state.intdigest()


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

    __slots__ = ("_count", "_records", "_sound", "folder")

    def __init__(self, folder: Path, nothing: Log) -> None:
        self.folder = folder
        self._records, self._sound, self._count = nothing.records, nothing.sound, 0

    @property
    def log(self) -> Log:
        """What was read; it stays as it is when more is read."""
        return Log(self._records[: self._count], self._sound[: self._count])

    def read_on(self, manifest: Manifest, identity: int) -> Log:
        """Read the records that are new, and give them."""
        known, size = self._count, self._records.itemsize
        with suppress(OSError), open_own(self.folder / ROWS) as file:
            self._make_room(file.seek(0, 2) // size)
            file.seek(known * size)
            while len(raw := file.read(_PIECE * size)) >= size:  # less is a torn record
                new = parse(manifest.values, raw, identity=identity, first=self._count)
                end = self._count + len(new.records)
                self._make_room(end)
                self._records[self._count : end] = new.records
                self._sound[self._count : end] = new.sound
                self._count = end
                file.seek(end * size)  # a read may have ended within a record
        return Log(self._records[known : self._count], self._sound[known : self._count])

    def _make_room(self, count: int) -> None:
        """For so many records; by half more than there are, so that growing costs little."""
        if count > len(self._records):
            room = max(count, len(self._records) * 3 // 2)
            records, sound = self.log.records, self.log.sound
            self._records = np.empty(room, dtype=records.dtype)
            self._sound = np.empty(room, dtype=np.bool_)
            self._records[: self._count], self._sound[: self._count] = records, sound


@final
class Catalogue:
    """The complete rows of a key: row id -> its records, the one last read first.

    Holds no data and no open file. Data are trusted until `check` is asked.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self.manifest, self._identity = folder, manifest, manifest.identity
        self.segments: list[SegmentRows] = []
        self._index = RowIndex()
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def has(self, keys: Keys) -> Mask:
        """Which of these rows are complete."""
        return self._index.has(keys)

    def keys(self) -> Keys:
        """Every complete row."""
        return self._index.keys()

    def refresh(self) -> None:
        """Take in new segments and new records."""
        known = {segment.folder for segment in self.segments}
        for path in segment_folders(self._folder):
            if path not in known:
                nothing = parse(self.manifest.values, b"", identity=self._identity)
                self.segments.append(SegmentRows(path, nothing))
        for number, segment in enumerate(self.segments):
            first = len(segment.log.records)
            new = segment.read_on(self.manifest, self._identity)
            if len(new.records):
                places = np.flatnonzero(new.sound) + first + (number << _PLACE_BITS)
                self._index.add(record_keys(new.records[new.sound]), places)

    def check(self, keys: Keys) -> list[Flaw]:
        """Check the data of complete rows against their checksums, and forget what is damaged.

        A row that was stored twice is complete as long as one copy is intact; the flaws of the
        other are not given.
        """
        flaws: dict[bytes, Flaw] = {}
        pending = keys
        while len(pending):
            places = self._index.find(pending)
            order = np.argsort(places, kind="stable")  # as they lie on the disk
            pending = pending[order[places[order] != NOWHERE]]
            found: dict[bytes, Flaw] = {}
            for start in range(0, len(pending), _PIECE):
                found |= self._damaged(pending[start : start + _PIECE])
            flaws |= found
            pending = row_keys(list(found))
            self._index.forget(pending)
        gone = ~self.has(row_keys(list(flaws)))
        return [flaw for flaw, is_gone in zip(flaws.values(), gone, strict=True) if is_gone]

    def places(self, keys: Keys) -> tuple[Integers, Integers]:
        """The segment and the record of each row; all must be complete."""
        codes = self._index.find(keys)
        return codes >> _PLACE_BITS, codes & ((1 << _PLACE_BITS) - 1)

    def _damaged(self, keys: Keys) -> dict[bytes, Flaw]:
        segments, places = self.places(keys)
        flaws: dict[bytes, Flaw] = {}
        for at in np.unique(segments).tolist():
            here = np.flatnonzero(segments == at)
            folder = self.segments[at].folder
            records = self.segments[at].log.records[places[here]]
            for number, value in enumerate(self.manifest.values):
                bad = here[damaged(folder, number, value, records, places[here])]
                for row_id in key_bytes(keys[bad]):
                    flaws.setdefault(row_id, Flaw(folder, value.name, row_id))
        return flaws
