"""Segments to which nothing is added any more: what `sealed.json` says of one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import xxhash

from frostline._files import write_text
from frostline.store.keys import canonical_json
from frostline.store.layout import PUSHED, SEALED, open_own, segment_folders

_FORMAT: Final = "frostline segment"
_VERSION: Final = 1
_MOST_BYTES: Final = 1 << 20
_NAMES: Final = re.compile(r"rows|value\d+\.npy")


@final
@dataclass(frozen=True, slots=True)
class Sealed:
    """What a sealed segment holds.

    Attributes:
        rows: records in its log.
        files: name -> bytes, of the log and each value.
    """

    rows: int
    files: Mapping[str, int]

    def text(self) -> str:
        """As it stands in the file."""
        content = self._content()
        return json.dumps({"checksum": _checksum(content), **content}, indent=1) + "\n"

    def write(self, segment: Path) -> None:
        """Seal a segment of which this is true.

        Raises:
            OutputError: as `frostline._files.write_text`.
        """
        write_text(segment / SEALED, self.text())

    def _content(self) -> dict[str, object]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "rows": self.rows,
            "files": dict(self.files),
        }


def parse_sealed(raw: bytes) -> Sealed | None:
    """What `sealed.json` says; `None` where it is not what was written, or of a later version."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        content = json.loads(raw[:_MOST_BYTES])
        checksum = content.pop("checksum")
        found = Sealed(content["rows"], content["files"])
        names_fit = all(_NAMES.fullmatch(name) for name in found.files)
        if names_fit and checksum == _checksum(content) and content == found._content():
            return found
    return None


def read_sealed(segment: Path) -> Sealed | None:
    """What is said of a segment; `None` where it is not sealed."""
    with suppress(OSError), open_own(segment / SEALED) as file:
        return parse_sealed(file.read(_MOST_BYTES))
    return None


def is_pushed(segment: Path) -> bool:
    """Whether a remote has, or had, the segment."""
    return (segment / PUSHED).exists()


def waits(folder: Path) -> bool:
    """Whether a key holds a segment that no remote has yet."""
    return not all(map(is_pushed, segment_folders(folder)))


def _checksum(content: Mapping[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(content))
