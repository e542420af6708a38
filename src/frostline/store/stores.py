"""The feature store: folders of rows, one folder for each key."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import xxhash

from frostline._files import lock
from frostline.errors import CorruptFeatures, StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.homes import place_of
from frostline.store.keeping import Damage, Stored, find_damage, read_stored
from frostline.store.keys import FeatureKey, ValueSpec
from frostline.store.layout import IN_USE, check_no_link, key_folders
from frostline.store.manifest import Manifest, miss_line, settle
from frostline.store.mirror import Mirror
from frostline.store.objects import Objects, is_address
from frostline.store.reading import StoredRows, map_rows
from frostline.store.remote import Remote
from frostline.store.remote_keeping import remote_damage, remote_keys, remove_remote
from frostline.store.removal import (
    StoreBudget,
    folder_bytes,
    never,
    remove,
    remove_oldest,
    used_at,
)
from frostline.store.row_index import Keys, first_places, row_keys
from frostline.store.sealing import waits
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
    _remote: Remote | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on disk, of all files of the key."""
        return folder_bytes(self.path)

    @property
    def place(self) -> str:
        """Of a store at an address, where its local folder is: other text on other machines.

        Empty where there is no address.
        """
        return place_of(self.path) if self._remote else ""

    def is_empty(self) -> bool:
        """Whether there is nothing under the key, at the store's address neither.

        Raises:
            StoreError: the address cannot be read.
        """
        mirror = self._mirror
        return not self.nbytes and (mirror is None or mirror.is_empty())

    def missing(self, row_ids: Sequence[bytes]) -> list[int]:
        """Positions of rows that must be computed, each distinct row once.

        Every stored row that is asked for is read and checked; a damaged one is missing.

        Raises:
            StoreError: an id is not 16 bytes long.
        """
        keys = row_keys(row_ids)
        first = first_places(keys)
        catalogue = self._look(keys[first])
        catalogue.check(keys[first])
        while self._fetch(catalogue, missing := keys[first][~catalogue.has(keys[first])]):
            catalogue.check(missing)
        found: list[int] = first[~catalogue.has(keys[first])].tolist()
        return found

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Open the key for writing; several processes may do so at once.

        Where the store has an address, rows are brought there at the end, and while it is written.

        Raises:
            OutputError: the folder cannot be written, or at the end the disk or address refuses.
            StoreError: the folder was written with other values.
        """
        mirror = self._mirror
        if mirror is None:
            with closing(Writer(self.path, self._manifest, self._budget)) as writer:
                yield writer
            return
        with closing(mirror.writer()) as writer:
            yield writer
        mirror.push()

    def read(self, row_ids: Sequence[bytes]) -> StoredRows:
        """The rows in the order of `row_ids`, each checked against its checksum.

        Writes nothing but the time of last use, and that only where it can; of a store with an
        address also the rows that are there and not here.

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
        catalogue = self._look(wanted)
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
            found_anywhere = replace(self, path=self.path.absolute())
            return map_rows(catalogue, keys, held, partial(found_anywhere._read, keys))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"cannot map the features in {self.path}: {error}. "
                "Raise the limit on memory or open files of this process."
            ) from error

    @property
    def _mirror(self) -> Mirror | None:
        remote = self._remote
        return remote and Mirror(remote, self.path, self._manifest, self._budget)

    def _look(self, wanted: Keys) -> Catalogue:
        """What is stored, with what the address has of the wanted rows that are not here."""
        if self._mirror:
            self._mirror.push_leftovers()
        catalogue = Catalogue(self.path, self._manifest)
        self._fetch(catalogue, wanted[~catalogue.has(wanted)])
        return catalogue

    def _fetch(self, catalogue: Catalogue, wanted: Keys) -> bool:
        """Whether any rows came that may be wanted; then the catalogue has them."""
        if self._mirror is None or not len(wanted) or not self._mirror.fetch(wanted):
            return False
        catalogue.refresh()
        return True


@final
class FeatureStore:
    """Features on disk, found again by what they depend on.

    Making one does nothing on disk. Several processes may use one store.

    Args:
        root: the store's folder, or an address as `s3://bucket/prefix`. Rows are then read and
            written in a local folder, fetched from the address where they are wanted and brought
            there when they are complete; any number of machines may share it.
        budget_bytes: what the whole store may take; while it is written, the least recently used
            keys make room. With an address it is the local folder that is meant.
        cache: where the local folder of an address is, on a disk of this machine; by default in
            the user's cache folder. Each address has one of its own there.

    Raises:
        StoreError: `cache` is given and `root` is no address.

    Example:
        >>> store = fl.FeatureStore("features", budget_bytes=10**9)
        >>> features = fl.extract(fl.cut(model, images), data, store)
        >>> [(stored.rows, stored.damage) for stored in store.ls()]
        [(16, '')]
    """

    def __init__(
        self,
        root: str | Path,
        *,
        budget_bytes: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self._budget_bytes, self._remote = budget_bytes, None
        if is_address(root):
            address = str(root).rstrip("/")
            self._remote = Remote(Objects(address))
            beside = Path(cache).expanduser() if cache else user_cache() / "remote"
            self.root = beside / xxhash.xxh3_64_hexdigest(address.encode())
        elif cache is None:
            self.root = Path(root).expanduser()
        else:
            raise StoreError(
                f"{root} is a folder, so there is nothing to keep in {cache}. Give an address as "
                "s3://bucket/prefix, or leave out the cache."
            )

    def __repr__(self) -> str:
        budget = "" if self._budget_bytes is None else f", budget_bytes={self._budget_bytes}"
        cache = f", cache={str(self.root.parent)!r}" if self._remote else ""
        return f"FeatureStore({self.where!r}{budget}{cache})"

    @property
    def where(self) -> str:
        """The store's folder, or its address."""
        return self._remote.objects.address if self._remote else str(self.root)

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
        # Rows that no address has yet make no room for others.
        stays = waits if self._remote else never
        budget = StoreBudget(self.root, self._budget_bytes, stays=stays)
        return Features(folder, manifest, budget, self._remote)

    def explain_miss(self, key: FeatureKey) -> str:
        """One line on why `key` is not stored: which parts differ from the nearest stored key."""
        return miss_line(self.root, key)

    def ls(self) -> tuple[Stored, ...]:
        """Every key, most recently used first; reads no feature."""
        found = (
            remote_keys(self._remote) if self._remote else map(read_stored, key_folders(self.root))
        )
        return tuple(sorted(found, key=lambda stored: -stored.used_at))

    def verify(self) -> tuple[Damage, ...]:
        """Read every row of every key; gives each that is not what was written.

        A damaged row that was stored again intact is not given.
        """
        if self._remote:
            return tuple(remote_damage(self._remote))
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
        stored = self.ls()
        oldest = -math.inf if older_than_seconds is None else time.time() - older_than_seconds
        most = math.inf if max_bytes is None else max_bytes
        if self._remote:
            broken = {Path(str(damage.folder)).name for damage in self.verify()} if damaged else ()
            also = [e.digest for e in stored if e.used_at < oldest or e.digest in broken]
            removed = remove_remote(self._remote, stored, max_bytes=most, keep=keep, also=also)
            for entry in removed:
                remove(self.root / entry.digest)
            return removed
        gone = remove_oldest(
            self.root,
            max_bytes=most,
            keep=keep,
            also=lambda path: used_at(path) < oldest or (damaged and any(find_damage(path))),
        )
        by_path = {entry.path: entry for entry in stored}
        return tuple(by_path[path] for path in gone if path in by_path)


def user_cache() -> Path:
    """Frostline's folder in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "frostline"
