"""Rows at an address: sealed segments, fetched into a local folder and pushed from it.

The local folder of a key is one as any other, so rows are written, checked and read as ever. What
the address holds is made of whole segments that never change; `sealed.json` comes last, and where
it is missing or files are shorter than it says, nothing of the segment is read.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np

from frostline._files import lock
from frostline.errors import CorruptFeatures, FrostlineError
from frostline.store.layout import (
    MANIFEST,
    PUSHED,
    ROWS,
    SEALED,
    SEGMENT_LOCK,
    fetched_folders,
    is_segment,
    segment_files,
    segment_folders,
)
from frostline.store.manifest import Manifest, agreed, parse_manifest
from frostline.store.objects import Found, Objects
from frostline.store.records import parse
from frostline.store.row_index import Keys, RowIndex, record_keys
from frostline.store.sealing import Sealed, is_pushed, parse_sealed, read_sealed

LAST_USED: Final = "last-used"  # an object of a key whose time is that of the last fetch
_LOGS_TOGETHER: Final = 16


@final
@dataclass(frozen=True, slots=True)
class RemoteSegment:
    """A segment that an address holds whole.

    Attributes:
        name: `segment-<token>`.
    """

    name: str
    sealed: Sealed


@final
@dataclass(frozen=True, slots=True)
class Remote:
    """The keys at an address.

    Raises:
        StoreError: from whatever reads, as `Objects`.
        OutputError: from whatever writes, as `Objects`.
    """

    objects: Objects

    def has_rows(self, digest: str) -> bool:
        """Whether there is a segment of the key."""
        return any(name.endswith(f"/{SEALED}") for name in self.objects.found(digest))

    def segments(
        self,
        digest: str,
        listed: Mapping[str, Found] | None = None,
        *,
        without: Collection[str] = (),
    ) -> list[RemoteSegment]:
        """The whole segments of a key.

        Args:
            listed: all its objects; by default they are asked for.
            without: names of segments that are not looked at.
        """
        found = self.objects.found(digest) if listed is None else listed
        seals = sorted(name for name in found if is_seal(name, digest))
        names = [name for name in seals if name.split("/")[1] not in without]
        whole = []
        for name, raw in self.objects.read(names).items():
            folder, sealed = name.removesuffix(f"/{SEALED}"), parse_sealed(raw)
            if sealed and all(
                found.get(f"{folder}/{file}", Found(-1, 0)).nbytes == nbytes
                for file, nbytes in sealed.files.items()
            ):
                whole.append(RemoteSegment(folder.rpartition("/")[2], sealed))
        return whole

    def fetch(
        self,
        folder: Path,
        manifest: Manifest,
        segments: Sequence[RemoteSegment],
        wanted: Keys,
        make_room: Callable[[int], None],
    ) -> bool:
        """Bring those segments that hold wanted rows into the key's folder; whether any came.

        Args:
            make_room: called with the bytes that a segment will take.
        """
        _clear_fetched(folder)
        came = False
        for segment in self._holding(folder.name, manifest, segments, wanted):
            make_room(sum(segment.sealed.files.values()))
            came |= self.fetch_segment(folder, segment, folder.name)
        if came:
            with suppress(FrostlineError):  # who may only read cannot say that it was used
                self.objects.write(f"{folder.name}/{LAST_USED}", b"")
        return came

    def push(self, folder: Path, manifest: Manifest) -> None:
        """Bring sealed segments to the address that it never had."""
        waiting = [path for path in segment_folders(folder) if not is_pushed(path)]
        sealed = {path: found for path in waiting if (found := read_sealed(path))}
        if not sealed:
            return
        digest = folder.name
        there = self.objects.found(digest)
        self._settle(digest, manifest)
        for path, content in sealed.items():
            name = f"{digest}/{path.name}"
            if f"{name}/{SEALED}" not in there:
                for file in content.files:
                    self.objects.put(path / file, f"{name}/{file}")
                self.objects.write(f"{name}/{SEALED}", content.text().encode())
            (path / PUSHED).touch()

    def fetch_segment(self, folder: Path, segment: RemoteSegment, digest: str) -> bool:
        """Bring one segment into a folder; whether it is there then.

        It appears whole, under the name that it has at the address.
        """
        aside = folder / f"fetched-{secrets.token_hex(8)}"
        aside.mkdir(parents=True)
        held = lock(aside / SEGMENT_LOCK, needed=False)
        assert held is not None  # it waits
        with held:  # as long as it is being fetched
            files = {
                f"{digest}/{segment.name}/{file}": aside / file for file in segment.sealed.files
            }
            with suppress(FileNotFoundError):  # removed there meanwhile
                self.objects.get(files)
            sizes = {path.name: path.stat().st_size for path in files.values() if path.exists()}
            if sizes == segment.sealed.files:
                segment.sealed.write(aside)
                (aside / PUSHED).touch()
                with suppress(OSError):  # another process has brought it
                    aside.rename(folder / segment.name)
        _remove(aside)
        return (folder / segment.name).is_dir()

    def _holding(
        self, digest: str, manifest: Manifest, segments: Sequence[RemoteSegment], wanted: Keys
    ) -> Iterator[RemoteSegment]:
        """Segments, one after the other, that hold wanted rows which those before do not."""
        for first in range(0, len(segments), _LOGS_TOGETHER):
            some = segments[first : first + _LOGS_TOGETHER]
            logs = self.objects.read([f"{digest}/{segment.name}/{ROWS}" for segment in some])
            for segment in some:
                raw = logs.get(f"{digest}/{segment.name}/{ROWS}", b"")
                log = parse(manifest.values, raw, identity=manifest.identity)
                keys, there = record_keys(log.records[log.sound]), RowIndex()
                there.add(keys, np.zeros(len(keys), dtype=np.int64))
                hit = there.has(wanted)
                wanted = wanted[~hit]
                if hit.any():
                    yield segment
            if not len(wanted):
                return

    def _settle(self, digest: str, manifest: Manifest) -> None:
        """Make sure that the manifest at the address is this one."""
        name = f"{digest}/{MANIFEST}"
        where = f"{self.objects.address}/{digest}"
        with suppress(CorruptFeatures):  # it is written again
            for raw in self.objects.read([name]).values():
                agreed(parse_manifest(raw, digest, where), manifest, where)
                return
        self.objects.write(name, manifest.text(where).encode())


def is_seal(name: str, digest: str) -> bool:
    """Whether an object is the `sealed.json` of a segment of the key."""
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == digest and is_segment(parts[1]) and parts[2] == SEALED


def _clear_fetched(folder: Path) -> None:
    """Delete what was being fetched when its process was killed."""
    for path in fetched_folders(folder):
        with suppress(OSError):
            held = lock(path / SEGMENT_LOCK, wait=False)
            if held is not None:
                held.release()
                _remove(path)


def _remove(folder: Path) -> None:
    with suppress(OSError):
        for path in segment_files(folder):
            path.unlink(missing_ok=True)
        folder.rmdir()
