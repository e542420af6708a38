"""The feature store: folders of rows, one folder for each key."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from frostline.errors import StoreError
from frostline.store.budget import Budget
from frostline.store.features import Features
from frostline.store.keeping import Damage, Stored, find_damage, list_stored
from frostline.store.keys import FeatureKey, ValueSpec
from frostline.store.layout import check_no_link, key_folders
from frostline.store.manifest import Manifest, settle
from frostline.store.misses import miss_line
from frostline.store.removal import remove, sweep

_NO_NOTE: Final[Mapping[str, str]] = MappingProxyType({})


@final
class FeatureStore:
    """Features on disk, found again by what they depend on.

    Making one does nothing on disk. Several processes may use one store.

    Args:
        root: the store's folder.
        budget_bytes: what the whole store may take; while it is written, the least recently used
            keys make room.
    """

    def __init__(self, root: str | Path, *, budget_bytes: int | None = None) -> None:
        self.root = Path(root)
        self._budget_bytes = budget_bytes

    def __repr__(self) -> str:
        budget = "" if self._budget_bytes is None else f", budget_bytes={self._budget_bytes}"
        return f"FeatureStore({str(self.root)!r}{budget})"

    def open(
        self,
        key: FeatureKey,
        values: Sequence[ValueSpec],
        *,
        note: Mapping[str, str] = _NO_NOTE,
    ) -> Features:
        """The rows of `key`; the folder is made when they are first written.

        Args:
            values: what a row holds, in order.
            note: for people who list the store; written once, with the folder.
        Raises:
            StoreError: the key was stored with other values, or in a format this Frostline does
                not know, or `values` is empty or names one twice.
        """
        names = [value.name for value in values]
        if not names or len(set(names)) < len(names):
            raise StoreError(
                f"a row needs values with distinct names, and {names} were given. "
                "Give one ValueSpec for each value."
            )
        manifest = Manifest(key, tuple(values), dict(note))
        folder = self.root / key.digest
        check_no_link(folder)
        settle(folder, manifest)
        return Features(folder, manifest, Budget(self.root, self._budget_bytes, key.digest))

    def explain_miss(self, key: FeatureKey) -> str:
        """One line on why `key` is not stored: which parts differ from the nearest stored key."""
        return miss_line(self.root, key)

    def ls(self) -> tuple[Stored, ...]:
        """Every key, most recently used first; reads no feature."""
        return list_stored(self.root)

    def verify(self) -> tuple[Damage, ...]:
        """Read every row of every key; tells each that is not what was written.

        A damaged row that was stored again intact is not told.
        """
        return tuple(damage for folder in key_folders(self.root) for damage in find_damage(folder))

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        older_than_seconds: float | None = None,
        damaged: bool = False,
        keep: Collection[str] = (),
    ) -> tuple[Stored, ...]:
        """Remove keys, least recently used first; gives those that were removed.

        A key that is being written or read by a live process is never removed.

        Args:
            max_bytes: remove until the store has at most so many bytes.
            older_than_seconds: remove what was last used longer ago.
            damaged: remove every key in which `verify` finds damage.
            keep: digests of keys that stay.
        Raises:
            OutputError: a folder cannot be removed.
        """
        sweep(self.root)
        stored = self.ls()
        total = sum(entry.nbytes for entry in stored)
        oldest = time.time() - older_than_seconds if older_than_seconds is not None else None
        gone = []
        for entry in reversed(stored):
            too_much = max_bytes is not None and total > max_bytes
            too_old = oldest is not None and entry.used_at < oldest
            if entry.digest in keep or not (
                too_much or too_old or (damaged and any(find_damage(entry.path)))
            ):
                continue
            if remove(entry.path):
                gone.append(entry)
                total -= entry.nbytes
        return tuple(gone)
