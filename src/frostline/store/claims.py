"""Which rows are being computed by other live writers.

A claim lasts as long as its writer: it lies in the writer's segment, and counts only while the
segment's lock is held. A lost or damaged claim costs a row computed twice, nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

from frostline._files import lock
from frostline.store.layout import CLAIMS, SEGMENT_LOCK, open_own, own_segments
from frostline.store.records import ID_BYTES

CLAIM_TOKEN_BYTES: Final = 16  # at the head of the file: another token, another writer


@final
class OtherClaims:
    """What the other writers of a key claim, read on as they go."""

    def __init__(self, folder: Path, own: Path) -> None:
        self._folder, self._own = folder, own
        self._read: dict[Path, tuple[bytes, set[bytes]]] = {}

    def refresh(self) -> None:
        """Drop claims of writers that ended, take in new ones. To be called in the key's turn."""
        live = [p for p in own_segments(self._folder) if p != self._own and is_live(p)]
        self._read = {path: self._read_on(path) for path in live}

    def __contains__(self, row_id: bytes) -> bool:
        return any(row_id in claimed for _, claimed in self._read.values())

    def _read_on(self, path: Path) -> tuple[bytes, set[bytes]]:
        known, claimed = self._read.get(path, (b"", set()))
        try:
            with open_own(path / CLAIMS) as file:
                token = file.read(CLAIM_TOKEN_BYTES)
                if token != known:
                    claimed = set()
                file.seek(len(claimed) * ID_BYTES, 1)
                raw = file.read()
        except OSError:
            return b"", set()
        whole = len(raw) // ID_BYTES * ID_BYTES
        claimed.update(raw[at : at + ID_BYTES] for at in range(0, whole, ID_BYTES))
        return token, claimed


def is_live(segment: Path) -> bool:
    """Whether a living writer holds the segment. To be asked in the key's turn."""
    try:
        held = lock(segment / SEGMENT_LOCK, mode="shared", wait=False)
    except OSError:
        return False
    if held is None:
        return True
    held.release()
    return False
