"""The rows of one key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline._files import FileLock, lock
from frostline.errors import CorruptFeatures, StoreError
from frostline.store.budget import Budget
from frostline.store.catalogue import Catalogue
from frostline.store.keys import FeatureKey, ValueSpec
from frostline.store.layout import IN_USE
from frostline.store.manifest import Manifest
from frostline.store.reading import ReadAgain, Rows, make_rows
from frostline.store.records import ID_BYTES
from frostline.store.removal import folder_bytes
from frostline.store.writing import Writer, check_ids


@final
@dataclass(frozen=True, slots=True)
class _ReadAgain:
    """Where rows lie and which they are, to read them in another process."""

    path: str
    key: FeatureKey
    values: tuple[ValueSpec, ...]
    row_ids: bytes

    def __call__(self) -> Rows:
        folder = Path(self.path)
        budget = Budget(folder.parent, None, folder.name)  # nothing is written
        features = Features(folder, Manifest(self.key, self.values, {}), budget)
        ids = (self.row_ids[at : at + ID_BYTES] for at in range(0, len(self.row_ids), ID_BYTES))
        return features.read(list(ids))


@final
class Features:
    """What is stored under one key. Nothing is on disk before the first `writer`.

    Attributes:
        path: the key's folder.
    """

    def __init__(self, path: Path, manifest: Manifest, budget: Budget) -> None:
        self.path = path
        self._manifest, self._budget = manifest, budget

    @property
    def key(self) -> FeatureKey:
        """What the numbers depend on."""
        return self._manifest.key

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
        check_ids(row_ids)
        first = {row_id: at for at, row_id in reversed(list(enumerate(row_ids)))}
        catalogue = self._catalogue()
        catalogue.check(first)
        return sorted(at for row_id, at in first.items() if row_id not in catalogue)

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Open the key for writing; several processes may do so at once.

        Raises:
            OutputError: the folder cannot be written, or at the end the disk refuses.
            StoreError: the folder was written with other values.
        """
        writer = Writer(self.path, self._manifest, self._budget)
        try:
            yield writer
        finally:
            writer.close()

    def read(self, row_ids: Sequence[bytes]) -> Rows:
        """The rows in the order of `row_ids`, each checked against its checksum.

        Writes nothing but the time of last use, and that only where it can.

        Raises:
            StoreError: rows are missing; says how many.
            CorruptFeatures: rows are damaged; names the first.
        """
        check_ids(row_ids)
        held = self._say_used()
        catalogue = self._catalogue()
        wanted = set(row_ids)
        missing = sum(row_id not in catalogue for row_id in wanted)
        if missing:
            raise StoreError(
                f"{missing} of {len(wanted)} rows are not in {self.path}. "
                "Compute them first: `missing` tells which, `writer` stores them."
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
            return make_rows(catalogue, row_ids, held, self._again(row_ids))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"cannot map the features in {self.path}: {error}. "
                "Raise the limit on memory or open files of this process."
            ) from error

    def _again(self, row_ids: Sequence[bytes]) -> ReadAgain:
        where = str(self.path.absolute())
        return _ReadAgain(where, self._manifest.key, self._manifest.values, b"".join(row_ids))

    def _catalogue(self) -> Catalogue:
        catalogue = Catalogue(self.path, self._manifest)
        catalogue.refresh()
        return catalogue

    def _say_used(self) -> FileLock | None:
        """Keep the key from being pruned, and note the time; where it cannot be written, do not."""
        if not self.path.is_dir():
            return None
        held = None
        with suppress(OSError):
            held = lock(self.path / IN_USE, mode="shared")
        with suppress(OSError):
            os.utime(self.path / IN_USE)
        return held
