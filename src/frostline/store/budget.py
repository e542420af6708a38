"""A bound on the bytes of a whole store, kept while it is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, final

from frostline.errors import StoreError
from frostline.store.layout import key_folders
from frostline.store.removal import folder_bytes, remove_oldest
from frostline.units import format_bytes

RECOUNT_SECONDS: Final = 5.0  # other processes write too


@final
class Budget:
    """Makes room for one key's rows by removing those of others, least recently used first."""

    def __init__(self, root: Path, limit_bytes: int | None, digest: str) -> None:
        self._root, self._limit_bytes, self._digest = root, limit_bytes, digest
        self._expected_bytes = 0
        self._counted_at = -RECOUNT_SECONDS

    def make_room(self, new_bytes: int) -> None:
        """Let the store grow by `new_bytes`.

        Keys that any live process writes or reads are not removed.

        Raises:
            StoreError: the budget does not allow it; names what is needed.
        """
        if self._limit_bytes is None:
            return
        self._expected_bytes += new_bytes
        recent = time.monotonic() - self._counted_at < RECOUNT_SECONDS
        if recent and self._expected_bytes <= self._limit_bytes:
            return
        remove_oldest(self._root, max_bytes=self._limit_bytes - new_bytes, keep={self._digest})
        total = sum(folder_bytes(path) for path in key_folders(self._root))
        self._expected_bytes, self._counted_at = total + new_bytes, time.monotonic()
        if self._expected_bytes > self._limit_bytes:
            raise StoreError(
                f"{self._root} would hold {format_bytes(self._expected_bytes)}, and its budget is "
                f"{format_bytes(self._limit_bytes)}; nothing else in it can be removed. Rows that "
                "were complete are kept. Raise the budget, keep fewer views, or choose a smaller "
                "storage type."
            )
