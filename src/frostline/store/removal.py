"""Removing keys whole, never one that is in use."""

from __future__ import annotations

import secrets
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from frostline._files import lock
from frostline.errors import OutputError
from frostline.store.layout import IN_USE, key_folders, removed_folders, removed_name


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

    It disappears at once and whole; a crash in between leaves only what `sweep` removes.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        held = lock(folder / IN_USE, wait=False)
        if held is None:
            return False
        with held:
            aside = folder.with_name(removed_name(folder.name, secrets.token_hex(8)))
            folder.rename(aside)
            shutil.rmtree(aside)
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
        shutil.rmtree(path, ignore_errors=True)


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
