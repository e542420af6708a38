"""Where things lie: names of files, and the header that makes a data file an `.npy` file.

A store may hold what is not its own: folders named like a key or a segment, links to anywhere.
Only what goes by the names here is ever opened, and no link is followed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from frostline.errors import StoreError
from frostline.store.keys import NUMPY_TYPES, ValueSpec

MANIFEST: Final = "manifest.json"
IN_USE: Final = "in-use.lock"  # shared by all who use the key; its time is that of the last use
TURN: Final = "turn.lock"  # held for an instant by who claims rows or takes a segment
SEGMENT_LOCK: Final = "writer.lock"  # held by the segment's writer while it lives
ROWS: Final = "rows"
CLAIMS: Final = "claims"
HOME: Final = "home"  # where the segment's writers live
SEALED: Final = "sealed.json"  # of a segment to which nothing is added any more
PUSHED: Final = "pushed"  # beside it, once a remote has the segment
HEADER_BYTES: Final = 128

_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_REMOVED: Final = re.compile(r"\.removed-[0-9a-f]{32}-[0-9a-f]{16}")
_SEGMENT: Final = re.compile(r"segment-[0-9a-f]{16}")
_IN_KEY: Final = re.compile(r"manifest\.json|in-use\.lock|turn\.lock|\.manifest\.json\.\w+\.tmp")
_IN_SEGMENT: Final = re.compile(
    r"writer\.lock|rows|claims|home|\.?sealed\.json(\.\w+\.tmp)?|pushed|value\d+\.npy"
)
_FETCHED: Final = re.compile(r"fetched-[0-9a-f]{16}")


def key_folders(root: Path) -> Iterator[Path]:
    """The folders of keys under `root`, by name; anything else there is not ours."""
    for path in _named(root, _DIGEST, stat.S_ISDIR):
        if any(_IN_KEY.fullmatch(e.name) or _SEGMENT.fullmatch(e.name) for e in _entries(path)):
            yield path


def removed_folders(root: Path) -> Iterator[Path]:
    """What is left of keys whose removal was cut short."""
    return _named(root, _REMOVED, stat.S_ISDIR)


def is_segment(name: str) -> bool:
    """Whether it is a segment's name."""
    return _SEGMENT.fullmatch(name) is not None


def is_digest(name: str) -> bool:
    """Whether it is a key's name."""
    return _DIGEST.fullmatch(name) is not None


def segment_folders(folder: Path) -> Iterator[Path]:
    """The segments of a key, by name."""
    return _named(folder, _SEGMENT, stat.S_ISDIR)


def own_segments(folder: Path) -> Iterator[Path]:
    """The segments in which all is a writer's own: only there may anything be written."""
    for path in segment_folders(folder):
        entries = _entries(path)
        if path / SEALED in entries:
            continue
        if all(_IN_SEGMENT.fullmatch(entry.name) and _is_ours_alone(entry) for entry in entries):
            yield path


def fetched_folders(folder: Path) -> Iterator[Path]:
    """What is being fetched into a key, or was when that was cut short."""
    return _named(folder, _FETCHED, stat.S_ISDIR)


def own_files(folder: Path) -> Iterator[Path]:
    """The store's own files in a key's folder and its segments; no links, nothing else."""
    yield from _named(folder, _IN_KEY, stat.S_ISREG)
    for segment in (*segment_folders(folder), *fetched_folders(folder)):
        yield from segment_files(segment)


def segment_files(segment: Path) -> Iterator[Path]:
    """The store's own files in a segment."""
    return _named(segment, _IN_SEGMENT, stat.S_ISREG)


def check_no_link(folder: Path) -> None:
    """Refuse a key whose folder, or a file in it, is a link."""
    for path in (folder, *(folder / name for name in (MANIFEST, IN_USE, TURN))):
        if path.is_symlink():
            raise StoreError(
                f"{path} is a link, and a store follows none, so that nothing outside it is "
                "touched. Put what it leads to in its place, or delete the link."
            )


def open_own(path: Path, mode: str = "rb") -> FileIO:
    """Open one of the store's own files: no link is followed, no pipe waited for.

    With `r+b` it is made if it is missing.

    Raises:
        OSError: it is a link or no file, or cannot be opened.
    """
    return FileIO(path, mode, opener=_opened)


def _opened(path: str, flags: int) -> int:
    never = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows
    made = os.O_CREAT if flags & os.O_RDWR else 0
    handle = os.open(path, flags | made | never, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def value_name(number: int) -> str:
    """The data file of the value with this number in the manifest."""
    return f"value{number}.npy"


def header(spec: ValueSpec, units: int) -> bytes:
    """The `.npy` header (version 1.0) of `units` units, always 128 bytes."""
    shape = ", ".join(str(size) for size in (units, *spec.unit_shape))
    trailing = "," if not spec.unit_shape else ""
    text = (
        f"{{'descr': '{NUMPY_TYPES[spec.stored]}', 'fortran_order': False, "
        f"'shape': ({shape}{trailing}), }}"
    )
    size = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


def header_fits(path: Path, spec: ValueSpec, units: int) -> bool:
    """Whether a data file's header is as a writer makes it, for at least `units` units.

    A writer that was killed may have left it some units ahead of the log.
    """
    with open_own(path) as file:
        found = file.read(HEADER_BYTES)
    shape = re.search(rb"'shape': \((\d{1,18})", found)
    claimed = int(shape[1]) if shape else -1
    room = path.stat().st_size - HEADER_BYTES
    return (
        claimed >= units and found == header(spec, claimed) and claimed * spec.unit_nbytes <= room
    )


def _named(
    folder: Path, pattern: re.Pattern[str], is_such: Callable[[int], bool]
) -> Iterator[Path]:
    for path in _entries(folder):
        if pattern.fullmatch(path.name):
            with suppress(OSError):
                if is_such(path.lstat().st_mode):
                    yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # gone, or not to be looked into
        return []


def _is_ours_alone(path: Path) -> bool:
    """Whether it is a file that goes by no other name, which writing would change as well."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
