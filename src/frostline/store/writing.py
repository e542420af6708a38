"""Filling a store, alone or with other processes at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, final

from torch import Tensor

from frostline._files import FileLock, lock
from frostline.errors import StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.layout import IN_USE, TURN
from frostline.store.manifest import Manifest, settle
from frostline.store.records import ID_BYTES, encode, record_dtype
from frostline.store.removal import StoreBudget
from frostline.store.segments import OtherClaims, Segment, stored_or_kept

FLUSH_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02


@final
class Writer:
    """Stores rows of one key; for one thread of the process that made it.

    Killed at any instant, it leaves every row whose `put` returned.
    """

    def __init__(self, folder: Path, manifest: Manifest, budget: StoreBudget) -> None:
        self._folder, self._manifest, self._budget = folder, manifest, budget
        self._process, self._closed = os.getpid(), False
        self._held = ExitStack()
        with stored_or_kept(folder), ExitStack() as undo:
            undo.push(self._held)
            self._held.enter_context(use_key(folder))
            with self._turn():
                if settle(folder, manifest) is None:
                    manifest.write(folder)
                self._segment = Segment.take(folder, manifest)
            undo.pop_all()
        self._catalogue = Catalogue(folder, manifest)
        self._catalogue.refresh()
        self._claims = OtherClaims(folder, self._segment.folder)
        self._intact: set[bytes] = set()  # complete, and checked by this writer or its own
        self._claimed: set[bytes] = set()
        self._flushed_at = time.monotonic()

    def claim(self, row_ids: Sequence[bytes], limit: int) -> list[int]:
        """Positions of up to `limit` rows that this writer is now to compute.

        Those are missing or damaged, and claimed by no live writer, this one included. An id that
        is there several times is claimed once. Shorter than `limit`, and even empty, when others
        hold the rest: then `wait`.

        Raises:
            OutputError: the claim cannot be written.
        """
        self._check_process()
        check_ids(row_ids)
        first = self._settle_first(row_ids, limit)
        with stored_or_kept(self._folder), self._turn():
            self._catalogue.refresh(without=self._segment.folder)
            self._claims.refresh()
            chosen: dict[bytes, int] = {}
            taken = (chosen, self._intact, self._claimed, self._catalogue, self._claims)
            for position in range(first, len(row_ids)):
                if len(chosen) >= limit:
                    break
                row_id = row_ids[position]
                if not any(row_id in of_some for of_some in taken):
                    chosen[row_id] = position
            self._segment.claim(list(chosen))
        self._claimed.update(chosen)
        return list(chosen.values())

    def put(self, row_ids: Sequence[bytes], values: Sequence[Tensor | Sequence[Tensor]]) -> None:
        """Store a batch; on return its rows are complete for every later reader.

        Rows that are complete already are skipped.

        Args:
            values: one entry for each value of a row: `(batch, *shape)`, or a list of tensors,
                one for each row, where it is ragged.
        Raises:
            StoreError: the values are not those the store was opened for, or exceed the budget.
            OutputError: the disk is full or a file too large. Complete rows are kept.
        """
        self._check_process()
        self._check_batch(row_ids, values)
        self._settle_known(row_ids)
        wanted = {
            row_id: at
            for at, row_id in reversed(list(enumerate(row_ids)))
            if row_id not in self._intact
        }
        if not wanted:
            return
        positions = sorted(wanted.values())
        specs = self._manifest.values
        blocks = [encode(s, v, positions) for s, v in zip(specs, values, strict=True)]
        new_bytes = sum(block.content.nbytes for block in blocks)
        self._budget.make_room(new_bytes + len(positions) * record_dtype(specs).itemsize)
        new_ids = [row_ids[at] for at in positions]
        self._segment.append(new_ids, blocks)
        self._intact.update(new_ids)
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._segment.flush()
            self._flushed_at = time.monotonic()

    def wait(self, row_ids: Sequence[bytes], timeout_seconds: float) -> None:
        """Wait while the missing rows are all claimed by other live writers.

        Returns when all are complete, when one can be claimed because its writer ended, when
        those that are missing are claimed by this writer, or after `timeout_seconds`.
        """
        self._check_process()
        end = time.monotonic() + timeout_seconds
        while True:
            self._settle_known(row_ids)
            with stored_or_kept(self._folder), self._turn():
                self._catalogue.refresh(without=self._segment.folder)
                self._claims.refresh()
            missing = {i for i in row_ids if i not in self._catalogue and i not in self._intact}
            others = missing - self._claimed
            if not others or any(row_id not in self._claims for row_id in others):
                return
            if time.monotonic() >= end:
                return
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Bring the rows to the disk and let go of what is claimed. A second call does nothing.

        Raises:
            OutputError: the disk refuses.
        """
        if os.getpid() != self._process or self._closed:
            return
        self._closed = True
        with self._held:
            try:
                self._segment.flush()
            finally:
                with self._turn():
                    self._segment.close()

    def _turn(self) -> FileLock:
        held = lock(self._folder / TURN)
        assert held is not None  # it waits
        return held

    def _settle_first(self, row_ids: Sequence[bytes], limit: int) -> int:
        """Check what others stored among the ids up to the `limit`-th that nobody did.

        Not in the key's turn: reading may take long. Gives the first position that may be free.
        """
        self._catalogue.refresh(without=self._segment.folder)
        unknown, free, first = [], 0, len(row_ids)
        intact, claimed = self._intact, self._claimed
        for position, row_id in enumerate(row_ids):
            if row_id in claimed or row_id in intact:
                continue
            first = min(first, position)
            if row_id in self._catalogue:
                unknown.append(row_id)
            elif (free := free + 1) >= limit:
                break
        self._settle_known(unknown)
        return first

    def _settle_known(self, row_ids: Sequence[bytes]) -> None:
        """Check rows that others say are complete, each once."""
        new = {i for i in row_ids if i not in self._intact and i in self._catalogue}
        if new:
            self._catalogue.check(new)
            self._intact.update(i for i in new if i in self._catalogue)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(
                f"this writer of {self._folder} was made in process {self._process} and is used "
                f"in process {os.getpid()}. Open a writer of its own in each process."
            )

    def _check_batch(
        self, row_ids: Sequence[bytes], values: Sequence[Tensor | Sequence[Tensor]]
    ) -> None:
        counts = [len(row_ids), *map(len, values)]
        if len(values) != len(self._manifest.values) or len(set(counts)) > 1:
            raise StoreError(
                f"{len(row_ids)} row ids, and {len(values)} values with "
                f"{counts[1:]} rows were given; a row has {len(self._manifest.values)} values. "
                "Give each value with one row for each id."
            )
        check_ids(row_ids)


def check_ids(row_ids: Sequence[bytes]) -> None:
    """Make sure that row ids are what they must be.

    Raises:
        StoreError: one is not 16 bytes long.
    """
    for row_id in row_ids:
        if len(row_id) != ID_BYTES:
            raise StoreError(
                f"a row id is {ID_BYTES} bytes, and one of {len(row_id)} was given: {row_id!r}. "
                "Use a 128-bit hash of the sample and its view."
            )


def use_key(folder: Path) -> FileLock:
    """Keep `folder`, made if need be, from being removed while it is used, and say it was used.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = lock(folder / IN_USE, mode="shared")
        except FileNotFoundError:  # removed by `prune` in between
            continue
        except FileExistsError:  # a file; or a folder that `prune` removed before it was looked at
            if folder.is_file():
                raise
            continue
        assert held is not None  # it waits
        with suppress(OSError):
            os.utime(folder / IN_USE)
        return held
