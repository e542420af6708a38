"""Which rows of a key are complete, where they lie, and whether their bytes are those written.

Bytes are read to be checked, never mapped: an unreadable sector is then a damaged row and not a
dead process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

CHUNK_BYTES: Final = 1 << 20
_LONGEST_EMPTY: Final = 1 << 20  # a row without bytes may still be long
_PLACE_BITS: Final = 40


def damaged(
    segment: Path, number: int, value: ValueSpec, records: Records, places: Integers
) -> Mask:
    """Which rows' bytes of one value do not match the checksum in their record."""
    starts, sizes = data_bytes(value, number, records, places)
    longest = leading_shapes(value, number, records).max(axis=1, initial=0)
    sums = records[f"sum{number}"].tolist()
    bad = np.ones(len(records), dtype=np.bool_)
    with suppress(OSError), open_own(segment / value_name(number)) as opened:
        end = opened.seek(0, 2)
        fits = (starts + sizes <= end) & (longest <= max(end, _LONGEST_EMPTY))
        file = BufferedReader(opened, CHUNK_BYTES)
        for at in np.argsort(starts, kind="stable").tolist():
            bad[at] = not fits[at] or _sum(file, int(starts[at]), int(sizes[at])) != sums[at]
    return bad


def _sum(file: BinaryIO, start: int, size: int) -> int | None:
    """Checksum of a piece of a file, which need not fit into memory; `None` if it is unreadable."""
    state = xxhash.xxh3_64()
    try:
        file.seek(start)
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
@dataclass(slots=True)
class SegmentRows:
    """One segment's log as far as it was read."""

    folder: Path
    log: Log


@final
class Catalogue:
    """The complete rows of a key: row id -> its records, the one last read first.

    Holds no data and no open file. Data are trusted until `check` is asked.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self.manifest, self._identity = folder, manifest, manifest.identity
        self.segments: list[SegmentRows] = []
        self._place: dict[bytes, int] = {}
        self._others: dict[bytes, list[int]] = {}
        self.refresh()

    def __contains__(self, row_id: bytes) -> bool:
        return row_id in self._place

    def __len__(self) -> int:
        return len(self._place)

    def row_ids(self) -> list[bytes]:
        """Every complete row."""
        return list(self._place)

    def refresh(self) -> None:
        """Take in new segments and new records."""
        known = {segment.folder for segment in self.segments}
        for path in segment_folders(self._folder):
            if path not in known:
                nothing = parse(self.manifest.values, b"", identity=self._identity)
                self.segments.append(SegmentRows(path, nothing))
        for number, segment in enumerate(self.segments):
            self._read_on(number, segment)

    def check(self, row_ids: Iterable[bytes]) -> list[Flaw]:
        """Check the data of complete rows against their checksums, and forget what is damaged.

        A row that was stored twice is complete as long as one copy is intact; the flaws of the
        other are not given.
        """
        flaws: dict[bytes, Flaw] = {}
        pending = [row_id for row_id in row_ids if row_id in self._place]
        while pending:
            found = self._damaged(pending)
            flaws |= found
            for row_id in found:
                if others := self._others.get(row_id):
                    self._place[row_id] = others.pop()
                else:
                    del self._place[row_id]
            pending = [row_id for row_id in found if row_id in self._place]
        return [flaw for row_id, flaw in flaws.items() if row_id not in self._place]

    def places(self, row_ids: Sequence[bytes]) -> tuple[Integers, Integers]:
        """The segment and the record of each row; all must be complete."""
        find = self._place
        codes = np.fromiter((find[row_id] for row_id in row_ids), np.int64, len(row_ids))
        return codes >> _PLACE_BITS, codes & ((1 << _PLACE_BITS) - 1)

    def _read_on(self, number: int, segment: SegmentRows) -> None:
        old = segment.log
        known = len(old.records)
        try:
            with open_own(segment.folder / ROWS) as file:
                file.seek(known * old.records.itemsize)
                raw = file.read()
        except OSError:
            return
        new = parse(self.manifest.values, raw, identity=self._identity, first=known)
        records = np.concatenate([old.records, new.records])
        segment.log = Log(records, np.concatenate([old.sound, new.sound]))
        places = np.flatnonzero(new.sound) + known + (number << _PLACE_BITS)
        ids = new.records["id"][new.sound]
        for row_id, place in zip(ids.tolist(), places.tolist(), strict=True):
            if row_id in self._place:
                self._others.setdefault(row_id, []).append(self._place[row_id])
            self._place[row_id] = place

    def _damaged(self, row_ids: Sequence[bytes]) -> dict[bytes, Flaw]:
        segments, places = self.places(row_ids)
        flaws: dict[bytes, Flaw] = {}
        for at in np.unique(segments).tolist():
            here = np.flatnonzero(segments == at)
            folder = self.segments[at].folder
            records = self.segments[at].log.records[places[here]]
            for number, value in enumerate(self.manifest.values):
                bad = here[damaged(folder, number, value, records, places[here])]
                for position in bad.tolist():
                    row_id = row_ids[position]
                    flaws.setdefault(row_id, Flaw(folder, value.name, row_id))
        return flaws
