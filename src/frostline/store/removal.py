"""Removing keys whole, never one that is in use: by name, by age, or for room."""

from __future__ import annotations

import secrets
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from frostline._files import lock
from frostline.errors import OutputError, StoreError
from frostline.store.layout import (
    IN_USE,
    fetched_folders,
    key_folders,
    own_files,
    removed_folders,
    segment_folders,
)
from frostline.units import format_bytes

RECOUNT_SECONDS: Final = 5.0  # other processes write too


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            found = path.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def used_at(folder: Path) -> float:
    """When the key was last opened to be read or written, in seconds since the epoch."""
    for path in (folder / IN_USE, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def remove(folder: Path) -> bool:
    """Remove a key's folder, unless it is in use; gives whether it is gone.

    It disappears at once and whole; what a crash in between leaves goes with the next removal.
    What is not the store's own, links among it, stays in the folder.

    Raises:
        OutputError: it cannot be removed.
    """
    if folder.is_symlink() or (folder / IN_USE).is_symlink():
        return False
    try:
        held = lock(folder / IN_USE, wait=False)
        if held is None:
            return False
        with held:
            aside = folder.with_name(f".removed-{folder.name}-{secrets.token_hex(8)}")
            folder.rename(aside)
        # Not while the lock is held: NFS keeps a file that is open under another name when it is
        # deleted, and its folder could not go.
        if not _clear(aside):
            aside.rename(folder)
    except FileNotFoundError:  # another process removed it
        return True
    except OSError as error:
        raise OutputError(
            f"cannot remove {folder}: {error.strerror or error}. "
            "Delete it by hand, or prune with the rights to write there."
        ) from error
    return True


def _clear(folder: Path) -> bool:
    """Delete the store's own files, and the folders that are empty then; gives whether all are."""
    for path in own_files(folder):
        path.unlink(missing_ok=True)
    for path in (*segment_folders(folder), *fetched_folders(folder), folder):
        if not any(path.iterdir()):
            path.rmdir()
    return not folder.exists()


def never(_: Path) -> bool:
    """Of no key; a function with a name can be pickled."""
    return False


def remove_oldest(
    root: Path,
    *,
    max_bytes: float,
    keep: Collection[str] = (),
    also: Callable[[Path], bool] = never,
    stays: Callable[[Path], bool] = never,
) -> list[Path]:
    """Remove keys, least recently used first, until the store has at most `max_bytes`.

    Keys in `keep` or in use stay, so more may be left.

    Args:
        also: which keys go even so.
        stays: which keys do not, as those in `keep`.
    Returns:
        Those that are gone.
    Raises:
        OutputError: as `remove`.
    """
    for path in removed_folders(root):  # what is left of removals that were cut short
        with suppress(OSError):
            _clear(path)
    sizes = {path: folder_bytes(path) for path in key_folders(root)}
    total, gone = sum(sizes.values()), []
    for path in sorted(sizes, key=used_at):
        if path.name in keep or not (total > max_bytes or also(path)) or stays(path):
            continue
        if remove(path):
            total -= sizes[path]
            gone.append(path)
    return gone


@final
class StoreBudget:
    """Makes room for rows by removing keys that nobody uses, least recently used first.

    Args:
        stays: which keys are not removed, whoever uses them.
    """

    def __init__(
        self,
        root: Path,
        limit_bytes: int | None,
        *,
        stays: Callable[[Path], bool] = never,
    ) -> None:
        self._root, self._limit_bytes, self._stays = root, limit_bytes, stays
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
        remove_oldest(self._root, max_bytes=self._limit_bytes - new_bytes, stays=self._stays)
        total = sum(folder_bytes(path) for path in key_folders(self._root))
        self._expected_bytes, self._counted_at = total + new_bytes, time.monotonic()
        if self._expected_bytes > self._limit_bytes:
            raise StoreError(
                f"{self._root} would hold {format_bytes(self._expected_bytes)}, and its budget is "
                f"{format_bytes(self._limit_bytes)}; nothing else in it can be removed. Rows that "
                "were complete are kept. Raise the budget, keep fewer views, or choose a smaller "
                "storage type."
            )
