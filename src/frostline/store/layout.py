"""Where things lie: names of files, and the header that makes a data file an `.npy` file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from frostline.store.keys import NUMPY_TYPES, ValueSpec

MANIFEST: Final = "manifest.json"
IN_USE: Final = "in-use.lock"  # shared by all who use the key; its time is that of the last use
TURN: Final = "turn.lock"  # held for an instant by who claims rows or takes a segment
SEGMENT_LOCK: Final = "writer.lock"  # held by the segment's writer while it lives
ROWS: Final = "rows"
CLAIMS: Final = "claims"
HEADER_BYTES: Final = 128

_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_REMOVED: Final = ".removed-"


def key_folders(root: Path) -> Iterator[Path]:
    """The folders of keys under `root`, by name; anything else there is not ours."""
    for path in _entries(root):
        if _DIGEST.fullmatch(path.name) and path.is_dir():
            yield path


def removed_folders(root: Path) -> Iterator[Path]:
    """What is left of keys whose removal was cut short."""
    return (path for path in _entries(root) if path.name.startswith(_REMOVED))


def removed_name(digest: str, token: str) -> str:
    """What a key's folder is called while it is being removed."""
    return f"{_REMOVED}{digest}-{token}"


def segment_folders(folder: Path) -> Iterator[Path]:
    """The segments of a key, by name."""
    return (path for path in _entries(folder) if path.name.startswith("segment-"))


def segment_name(token: str) -> str:
    """The folder of one writer's data."""
    return f"segment-{token}"


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

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        found = file.read(HEADER_BYTES)
    told = re.search(rb"'shape': \((\d{1,18})", found)
    claimed = int(told[1]) if told else -1
    room = path.stat().st_size - HEADER_BYTES
    return (
        claimed >= units and found == header(spec, claimed) and claimed * spec.unit_nbytes <= room
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
