"""The feature store: folders of rows, one folder for each key."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from frostline._files import lock
from frostline.errors import CorruptFeatures, StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.keeping import Damage, Stored, find_damage, read_stored
from frostline.store.keys import FeatureKey, ValueSpec
from frostline.store.layout import IN_USE, check_no_link, key_folders
from frostline.store.manifest import Manifest, miss_line, settle
from frostline.store.reading import StoredRows, map_rows
from frostline.store.removal import StoreBudget, folder_bytes, remove_oldest, used_at
from frostline.store.row_index import Keys, first_places, row_keys
from frostline.store.writing import Writer


@final
@dataclass(frozen=True)
class Features:
    """What is stored under one key. Nothing is on disk before the first `writer`.

    Attributes:
        path: the key's folder.
    """

    path: Path
    _manifest: Manifest
    _budget: StoreBudget

    @property
    def nbytes(self) -> int:
        """Bytes on disk, of all files of the key."""
        return folder_bytes(self.path)

    def missing(self, row_ids: Sequence[bytes]) -> list[int]:
        """Positions of rows that must be computed, each distinct row once.

        Every stored row that is asked for is read and checked; a damaged one is missing.

        Raises:
            StoreError: an id is not 16 bytes long.
        """
        keys = row_keys(row_ids)
        first = first_places(keys)
        catalogue = Catalogue(self.path, self._manifest)
        catalogue.check(keys[first])
        found: list[int] = first[~catalogue.has(keys[first])].tolist()
        return found

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Open the key for writing; several processes may do so at once.

        Raises:
            OutputError: the folder cannot be written, or at the end the disk refuses.
            StoreError: the folder was written with other values.
        """
        with closing(Writer(self.path, self._manifest, self._budget)) as writer:
            yield writer

    def read(self, row_ids: Sequence[bytes]) -> StoredRows:
        """The rows in the order of `row_ids`, each checked against its checksum.

        Writes nothing but the time of last use, and that only where it can.

        Raises:
            StoreError: rows are missing; says how many.
            CorruptFeatures: rows are damaged; names the first.
        """
        return self._read(row_keys(row_ids))

    def _read(self, keys: Keys) -> StoredRows:
        wanted = keys[first_places(keys)]
        held = None
        with suppress(OSError):  # keeps the key from being pruned, where locks can be had
            held = lock(self.path / IN_USE, mode="shared")
        with suppress(OSError):
            os.utime(self.path / IN_USE)
        catalogue = Catalogue(self.path, self._manifest)
        missing = int((~catalogue.has(wanted)).sum())
        if missing:
            raise StoreError(
                f"{missing} of {len(wanted)} rows are not in {self.path}. "
                "Compute them first: `missing` says which, `writer` stores them."
            )
        flaws = catalogue.check(wanted)
        if flaws:
            flaw = flaws[0]
            raise CorruptFeatures(
                f"{len(flaws)} of {len(wanted)} rows in {self.path} are not what was written; the "
                f"first is row {flaw.row_id.hex()}, value '{flaw.value}' in {flaw.segment.name}. "
                "Compute them anew: `missing` names them, and `writer` stores them again."
            )
        try:
            found_anywhere = Features(self.path.absolute(), self._manifest, self._budget)
            return map_rows(catalogue, keys, held, partial(found_anywhere._read, keys))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"cannot map the features in {self.path}: {error}. "
                "Raise the limit on memory or open files of this process."
            ) from error


@final
class FeatureStore:
    """Features on disk, found again by what they depend on.

    Making one does nothing on disk. Several processes may use one store.

    Args:
        root: the store's folder.
        budget_bytes: what the whole store may take; while it is written, the least recently used
            keys make room.

    Example:
        >>> store = fl.FeatureStore("features", budget_bytes=10**9)
        >>> features = fl.extract(fl.cut(model, images), data, store)
        >>> [(stored.rows, stored.damage) for stored in store.ls()]
        [(16, '')]
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
        note: Mapping[str, str] | None = None,
    ) -> Features:
        """The rows of `key`; the folder is made when they are first written.

        Args:
            values: what a row holds, in order.
            note: for people who list the store; written once, with the folder.
        Raises:
            StoreError: the key was stored with other values, or in a format this Frostline does
                not know, or `values` is empty or names one twice.
        """
        manifest = Manifest(key, tuple(values), dict(note or {}))
        folder = self.root / key.digest
        check_no_link(folder)
        settle(folder, manifest)
        return Features(folder, manifest, StoreBudget(self.root, self._budget_bytes))

    def explain_miss(self, key: FeatureKey) -> str:
        """One line on why `key` is not stored: which parts differ from the nearest stored key."""
        return miss_line(self.root, key)

    def ls(self) -> tuple[Stored, ...]:
        """Every key, most recently used first; reads no feature."""
        found = map(read_stored, key_folders(self.root))
        return tuple(sorted(found, key=lambda stored: -stored.used_at))

    def verify(self) -> tuple[Damage, ...]:
        """Read every row of every key; gives each that is not what was written.

        A damaged row that was stored again intact is not given.
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
        stored = {entry.path: entry for entry in self.ls()}
        oldest = -math.inf if older_than_seconds is None else time.time() - older_than_seconds
        gone = remove_oldest(
            self.root,
            max_bytes=math.inf if max_bytes is None else max_bytes,
            keep=keep,
            also=lambda path: used_at(path) < oldest or (damaged and any(find_damage(path))),
        )
        return tuple(stored[path] for path in gone if path in stored)
