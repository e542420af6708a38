"""What a store holds, whether it is intact, and what may go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final, final

import numpy as np

from frostline.errors import StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.keys import ValueSpec
from frostline.store.layout import header_fits, value_name
from frostline.store.manifest import read_manifest
from frostline.store.records import unit_totals
from frostline.store.removal import folder_bytes, used_at
from frostline.tables import Table, columns
from frostline.units import format_bytes, format_count

_SHOWN_PARTS: Final = 20
_SHOWN_CHARACTERS: Final = 400


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """One key of a store.

    Attributes:
        digest: the folder's name.
        parts: the key's parts; empty when the manifest cannot be read.
        rows: complete rows, as the log says; their data are not read.
        nbytes: of all its files.
        used_at: when it was last opened, in seconds since the epoch.
        damage: what is wrong with its manifest; empty when nothing is.
    """

    digest: str
    path: Path
    parts: Mapping[str, str]
    values: tuple[ValueSpec, ...]
    note: Mapping[str, str]
    rows: int
    nbytes: int
    used_at: float
    damage: str


@final
@dataclass(frozen=True, slots=True)
class Damage:
    """Something stored that is not what was written.

    Attributes:
        folder: of the key, or its address.
        value: name of the damaged value; empty when it is not one value.
        row_id: empty when it is not known.
        what: in words.
    """

    folder: Path | str
    value: str
    row_id: bytes
    what: str

    def __str__(self) -> str:
        row = f", row {self.row_id.hex()}" if self.row_id else ""
        value = f", value '{self.value}'" if self.value else ""
        return f"{self.folder}{row}{value}: {self.what}"


def read_stored(folder: Path) -> Stored:
    """What a key's folder says of itself."""
    found = _look_into(folder)
    damage, catalogue = (found, None) if isinstance(found, str) else ("", found)
    manifest = catalogue.manifest if catalogue else None
    return Stored(
        digest=folder.name,
        path=folder,
        parts=manifest.key.parts if manifest else {},
        values=manifest.values if manifest else (),
        note=manifest.note if manifest else {},
        rows=len(catalogue) if catalogue else 0,
        nbytes=folder_bytes(folder),
        used_at=used_at(folder),
        damage=damage,
    )


def find_damage(folder: Path) -> Iterator[Damage]:
    """Read every row of a key and give what does not match its checksum."""
    catalogue = _look_into(folder)
    if isinstance(catalogue, str):
        yield Damage(folder, "", b"", catalogue)
        return
    values = catalogue.manifest.values
    for segment in catalogue.segments:
        where = segment.folder.name
        for at in np.flatnonzero(~segment.log.sound).tolist():
            if any(segment.log.records[at].tobytes()):  # zeros say nothing, and are no damage
                what = f"record {at} of {where} does not match its checksum"
                yield Damage(folder, "", b"", what)
        totals = unit_totals(values, segment.log)
        for number, (value, units) in enumerate(zip(values, totals, strict=True)):
            path = segment.folder / value_name(number)
            with suppress(OSError):  # a data file that is gone shows in its rows
                if segment.log.sound.any() and not header_fits(path, value, units):
                    what = (
                        f"the header of {where}/{path.name} is not what was written; "
                        "Frostline does not use it, but other programs would misread the file"
                    )
                    yield Damage(folder, value.name, b"", what)
    for flaw in catalogue.check(catalogue.keys()):
        what = f"its bytes in {flaw.segment.name} do not match their checksum"
        yield Damage(folder, flaw.value, flaw.row_id, what)


def stored_table(stored: Sequence[Stored]) -> Table:
    """What a store holds, as a table."""
    heads = columns("Key", "Rows", "Size", "Last used", "Holds", right=2)
    rows = tuple(
        (
            entry.digest[:12],
            format_count(entry.rows),
            format_bytes(entry.nbytes),
            _when(entry.used_at),
            entry.damage or _described(entry.note or entry.parts),
        )
        for entry in stored
    )
    total = sum(entry.nbytes for entry in stored)
    return Table(heads, rows, notes=(f"{len(rows)} keys, {format_bytes(total)}",))


def _look_into(folder: Path) -> Catalogue | str:
    """A key's rows, or what is wrong with its manifest."""
    try:
        if manifest := read_manifest(folder):
            return Catalogue(folder, manifest)
    except StoreError as error:
        return str(error)
    return (
        "the manifest is gone, so its rows cannot be checked. Opening the store for writing with "
        "the same key repairs it; or delete the folder"
    )


def _when(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # what a file system may hold, and no calendar
        return "unknown"


def _described(parts: Mapping[str, str]) -> str:
    """All parts, cut where they are too long for people to read."""
    listed = islice(parts.items(), _SHOWN_PARTS)
    more = [f"and {len(parts) - _SHOWN_PARTS} more"] if len(parts) > _SHOWN_PARTS else []
    return ", ".join([*(f"{_cut(name)}: {_cut(text)}" for name, text in listed), *more])


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
