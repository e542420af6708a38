"""Which rows of a key are complete, and where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from frostline.store.checking import damaged
from frostline.store.keys import ValueSpec
from frostline.store.layout import ROWS, open_own, segment_folders
from frostline.store.manifest import Manifest
from frostline.store.numbers import Integers
from frostline.store.records import Log, Records, ids, parse, record_dtype

_PLACE_BITS = 40


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
        other are not told.
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
            folder, records = self._records(at, places[here])
            for number, value in enumerate(self.values):
                bad = here[damaged(folder, number, value, records, places[here])]
                for position in bad.tolist():
                    row_id = row_ids[position]
                    flaws.setdefault(row_id, Flaw(folder, value.name, row_id))
        return list(flaws.values())

    def _records(self, segment: int, places: Integers) -> tuple[Path, Records]:
        rows = self.segments[segment]
        return rows.folder, rows.log.records[places]
