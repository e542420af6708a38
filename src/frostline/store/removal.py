"""Removing keys whole, never one that is in use."""

from __future__ import annotations

import secrets
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from frostline._files import lock
from frostline.errors import OutputError
from frostline.store.layout import (
    IN_USE,
    key_folders,
    own_files,
    removed_folders,
    removed_name,
    segment_folders,
)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            told = path.lstat()
            total += told.st_size if stat.S_ISREG(told.st_mode) else 0
    return total


def used_at(folder: Path) -> float:
    """When the key was last opened to be read or written, in seconds since the epoch."""
    for path in (folder / IN_USE, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def remove(folder: Path) -> bool:
    """Remove a key's folder, unless it is in use; tells whether it is gone.

    It disappears at once and whole; a crash in between leaves only what `sweep` removes. What is
    not the store's own, links among it, stays in the folder.

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
            aside = folder.with_name(removed_name(folder.name, secrets.token_hex(8)))
            folder.rename(aside)
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


def sweep(root: Path) -> None:
    """Remove what is left of removals that were cut short."""
    for path in removed_folders(root):
        with suppress(OSError):
            _clear(path)


def _clear(folder: Path) -> bool:
    """Delete the store's own files, and the folders that are empty then; tells whether all are.

    Raises:
        OSError: one cannot be deleted.
    """
    for path in own_files(folder):
        path.unlink(missing_ok=True)
    for path in (*segment_folders(folder), folder):
        if any(path.iterdir()):
            continue
        path.rmdir()
    return not folder.exists()


def remove_oldest(root: Path, *, max_bytes: int, keep: Collection[str]) -> None:
    """Remove keys, least recently used first, until the store has at most `max_bytes`.

    Keys in `keep` or in use stay, so more may be left.

    Raises:
        OutputError: as `remove`.
    """
    sweep(root)
    sizes = {path: folder_bytes(path) for path in key_folders(root)}
    total = sum(sizes.values())
    for path in sorted(sizes, key=used_at):
        if total <= max_bytes:
            return
        if path.name not in keep and remove(path):
            total -= sizes[path]
