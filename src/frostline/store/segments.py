"""One writer's data, and what others claim: files that only grow, and a log of complete rows.

Nothing is written through a memory map, so a full disk is an error and not a signal, and nothing
is allocated ahead, so a file-size limit harms no complete row. A claim lasts as long as its writer:
it lies in the writer's segment, and counts while the segment's lock is held or, seen from another
machine, something happens there. A lost or damaged claim costs a row computed twice, nothing else.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final, Self, final

import numpy as np

from frostline._files import FileLock, lock
from frostline.errors import OutputError
from frostline.store.homes import read_home, write_home
from frostline.store.layout import (
    CLAIMS,
    HEADER_BYTES,
    ROWS,
    SEGMENT_LOCK,
    header,
    open_own,
    own_segments,
    segment_files,
    value_name,
)
from frostline.store.manifest import Manifest
from frostline.store.records import (
    ID_BYTES,
    Bytes,
    Log,
    Mask,
    Records,
    data_bytes,
    parse,
    record_dtype,
    seal,
    unit_totals,
)
from frostline.store.sealing import Sealed
from frostline.wording import either

CLAIM_TOKEN_BYTES: Final = 16  # at the head of the file: another token, another writer
# A writer on another machine counts as alive for so long after it last claimed or stored, even
# where its lock is free: not every file system passes locks on.
SILENT_SECONDS: Final = 60.0


@final
@dataclass(slots=True)
class _Claims:
    """What one other writer claims, as far as it was read, and when that last changed."""

    token: bytes = b""
    rows: set[bytes] = field(default_factory=set)
    count: int = 0
    log_bytes: int = -1
    changed_at: float = 0.0


@final
@dataclass
class OtherClaims:
    """What the other writers of a key claim, read on as they go.

    Attributes:
        home: of this writer.
    """

    _folder: Path
    _own: Path
    home: str
    _read: dict[Path, _Claims] = field(default_factory=dict)

    def refresh(self) -> None:
        """Drop claims of writers that ended, take in new ones. In the key's turn."""
        self._read = {
            path: self._read_on(path) for path in own_segments(self._folder) if path != self._own
        }
        for path, claims in self._read.items():
            if claims.rows and not self._is_live(path, claims):
                claims.rows = set()

    def __contains__(self, row_id: bytes) -> bool:
        return any(row_id in claims.rows for claims in self._read.values())

    def _is_live(self, path: Path, claims: _Claims) -> bool:
        """Whether the writer lives, or may: what a lock says is sure where both have one home."""
        held = is_held(path)
        if held or (held is not None and read_home(path) == self.home):
            return bool(held)
        return time.monotonic() - claims.changed_at < SILENT_SECONDS

    def _read_on(self, path: Path) -> _Claims:
        claims = self._read.get(path, _Claims())
        try:
            with open_own(path / CLAIMS) as file, open_own(path / ROWS) as log:
                token, log_bytes = file.read(CLAIM_TOKEN_BYTES), log.seek(0, os.SEEK_END)
                if token != claims.token:
                    claims = _Claims(token)
                file.seek(claims.count * ID_BYTES, os.SEEK_CUR)
                raw = file.read()
        except OSError:
            return _Claims()
        whole = len(raw) // ID_BYTES * ID_BYTES
        if whole or log_bytes != claims.log_bytes:
            claims.changed_at, claims.log_bytes = time.monotonic(), log_bytes
        claims.rows.update(raw[at : at + ID_BYTES] for at in range(0, whole, ID_BYTES))
        claims.count += whole // ID_BYTES
        return claims


def is_held(segment: Path) -> bool | None:
    """Whether a writer holds the segment's lock; `None` where that cannot be seen.

    In the key's turn.
    """
    try:
        held = lock(segment / SEGMENT_LOCK, mode="shared", wait=False)
    except OSError:
        return None
    if held is None:
        return True
    held.release()
    return False


_FLUSH: Final = os.fdatasync if sys.platform == "linux" else os.fsync


@final
class Segment:
    """A segment open for appending; its lock is held until it is closed."""

    def __init__(self, folder: Path, manifest: Manifest, held: FileLock) -> None:
        self.folder = folder
        self._values, self._identity, self._held = manifest.values, manifest.identity, held
        self._count, self._units = 0, [0] * len(manifest.values)
        with ExitStack() as undo:
            self._log = undo.enter_context(open_own(folder / ROWS, "r+b"))
            self._data = [
                undo.enter_context(open_own(folder / value_name(number), "r+b"))
                for number in range(len(manifest.values))
            ]
            self._repair()
            self._files = undo.pop_all()

    @classmethod
    def take(cls, folder: Path, manifest: Manifest, home: str) -> Self:
        """Go on with an abandoned segment of the key, or begin a new one. In the key's turn.

        All abandoned segments are repaired. Those of other homes are never written: there a
        lock that is free need not mean that nobody writes.
        """
        with stored_or_kept(folder):
            free = list(cls._free(folder, manifest, home))
            for segment in free[1:]:
                segment.close()
            if free:
                return free[0]
            path = folder / f"segment-{secrets.token_hex(8)}"
            path.mkdir()
            write_home(path, home)
            held = lock(path / SEGMENT_LOCK, wait=False, needed=False)
            assert held is not None  # nobody else takes one in this turn
            return cls(path, manifest, held)

    @classmethod
    def seal_free(cls, folder: Path, manifest: Manifest, home: str) -> None:
        """Seal all segments of a home that nobody writes. In the key's turn."""
        with stored_or_kept(folder):
            for segment in cls._free(folder, manifest, home):
                segment._seal()
                segment.close()

    @classmethod
    def _free(cls, folder: Path, manifest: Manifest, home: str) -> Iterator[Self]:
        """The segments of a home that nobody writes, held and repaired."""
        for path in own_segments(folder):
            if read_home(path) != home:
                continue
            with suppress(OSError):  # one that cannot be written is left as it is
                held = lock(path / SEGMENT_LOCK, wait=False)
                if held is not None:
                    yield cls(path, manifest, held)

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return sum(self._ends(self._units))

    def append(self, records: Records, contents: Sequence[Bytes]) -> None:
        """Store encoded rows, sealing their records; on return they are complete.

        Raises:
            OutputError: the disk is full or a file too large. Complete rows are kept.
        """
        ends = seal(
            self._values, records, starts=self._units, identity=self._identity, first=self._count
        )
        with stored_or_kept(self.folder):
            try:
                for file, end, content in zip(
                    self._data, self._ends(self._units), contents, strict=True
                ):
                    _write_at(file, end, content)
                self._write_headers(ends)
                _write_at(self._log, self._count * records.itemsize, records.tobytes())
            except OSError:
                self._count_rows()  # rows whose records got through stay, a torn record goes
                with suppress(OSError):
                    self._log.truncate(self._count * records.itemsize)
                raise
        self._count += len(records)
        self._units = ends

    def claim(self, row_ids: Sequence[bytes]) -> None:
        """Say that this writer will compute these rows. In the key's turn.

        The file is closed each time: on NFS that is when others see what was written.
        """
        with stored_or_kept(self.folder), open_own(self.folder / CLAIMS, "r+b") as file:
            _write_at(file, file.seek(0, os.SEEK_END), b"".join(row_ids))

    def flush(self) -> None:
        """Bring everything to the disk, data before the records that vouch for them."""
        with stored_or_kept(self.folder):
            for file in [*self._data, self._log]:
                _FLUSH(file.fileno())

    def close(self) -> None:
        """Let go of the segment; one without rows is removed. In the key's turn."""
        with self._held:
            self._files.close()
            with suppress(OSError), open_own(self.folder / CLAIMS, "r+b") as file:
                file.truncate(0)  # for who cannot see the lock
        if self._count == 0:
            with suppress(OSError):
                for path in segment_files(self.folder):
                    path.unlink()
                self.folder.rmdir()

    def _seal(self) -> None:
        """Say that nothing is added any more; what was just repaired is as long as its rows."""
        if self._count:
            files = {value_name(n): end for n, end in enumerate(self._ends(self._units))}
            log_bytes = self._count * record_dtype(self._values).itemsize
            Sealed(self._count, {ROWS: log_bytes, **files}).write(self.folder)

    def _repair(self) -> None:
        """Take away what a killed writer left half done, and void what is no record.

        Data that are shorter than the log says are filled up with zeros; the rows that lost bytes
        do not match their checksums.
        """
        log = self._count_rows()
        size = log.records.itemsize
        for at in np.flatnonzero(~log.sound).tolist():
            _write_at(self._log, at * size, bytes(size))
        self._log.truncate(self._count * size)
        with open_own(self.folder / CLAIMS, "r+b") as file:
            file.truncate(0)
            _write_at(file, 0, secrets.token_bytes(CLAIM_TOKEN_BYTES))
        self._write_headers(self._units)
        for file, end in zip(self._data, self._ends(self._units), strict=True):
            file.truncate(end)

    def _write_headers(self, units: Sequence[int]) -> None:
        for file, value, count in zip(self._data, self._values, units, strict=True):
            _write_at(file, 0, header(value, count))

    def _ends(self, units: Sequence[int]) -> list[int]:
        """Where in each data file so many units end."""
        pairs = zip(self._values, units, strict=True)
        return [HEADER_BYTES + count * value.unit_nbytes for value, count in pairs]

    def _count_rows(self) -> Log:
        """Read the log and set where to go on."""
        self._log.seek(0)
        log = parse(self._values, self._log.read(), identity=self._identity)
        log = Log(log.records, log.sound & self._is_in_files(log.records))
        self._count, self._units = len(log.records), unit_totals(self._values, log)
        return log

    def _is_in_files(self, records: Records) -> Mask:
        """Which records speak of units that the files have; of ragged ones, as others are filled.

        Files are never made longer on the word of a record alone.
        """
        found = np.ones(len(records), dtype=np.bool_)
        places = np.arange(len(records))
        for number, (file, value) in enumerate(zip(self._data, self._values, strict=True)):
            if value.ragged_count:
                starts, sizes = data_bytes(value, number, records, places)
                found &= starts + sizes <= max(HEADER_BYTES, file.seek(0, os.SEEK_END))
        return found


@contextmanager
def stored_or_kept(folder: Path) -> Iterator[None]:
    """Say of a write that failed what became of the rows."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write features to {folder}: {reason}. Rows that were complete are kept. "
            "Make room on the disk (see "
            f"{either('fl.FeatureStore(...).prune', '`frostline features prune`')}) or choose a "
            "folder you can write to, and run it again: it goes on where it stopped."
        ) from error


def _write_at(file: FileIO, position: int, content: bytes | Bytes) -> None:
    file.seek(position)
    rest = content.data if isinstance(content, np.ndarray) else memoryview(content)
    while len(rest):
        rest = rest[file.write(rest) :]
