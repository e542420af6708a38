"""Pictures that were read to their last byte before and were sound, by their content, in a file.

One line names what read them, and each further line is the digest of a picture; the last is the
sum of those above it. Losing the file, or a file by another reader, costs one more reading.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, final

import PIL

from frostline._files import checked, replacing, with_sum
from frostline._version import __version__
from frostline.errors import OutputError

_FORMAT: Final = "frostline sound pictures 1"
_MOST: Final = 1_000_000  # those that were found sound longest ago go first
# Formats that Pillow reads by itself, whatever else is installed, and their first bytes.
_KNOWN: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


@final
class SoundPictures:
    """Digests of pictures of 8 bits a channel in which there is nothing odd.

    May be asked and added to by several threads.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._digests = dict.fromkeys(self._read())
        self._is_new = False

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def add(self, digest: str, prefix: bytes) -> None:
        """A picture that was sound, if its first bytes are of a format that is known always."""
        if prefix.startswith(_KNOWN) and digest not in self._digests:
            self._digests[digest] = None
            self._is_new = True

    def write(self) -> None:
        """For the next audit; where nothing can be written it reads the pictures again."""
        if not self._is_new:
            return
        lines = [_readers(), *list(self._digests)[-_MOST:]]
        with suppress(OutputError), replacing(self._file) as temporary:
            temporary.write_text(with_sum("".join(f"{line}\n" for line in lines)))
        self._is_new = False

    def _read(self) -> list[str]:
        try:
            readers, *digests = checked(self._file.read_bytes()).splitlines()
        except (OSError, ValueError):
            return []
        return digests if readers == _readers() else []


def _readers() -> str:
    return f"{_FORMAT}, Frostline {__version__}, Pillow {PIL.__version__}"
