"""Filling a store, alone or with other processes at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, final

from torch import Tensor

from frostline._files import FileLock, lock
from frostline.errors import StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.layout import IN_USE, TURN
from frostline.store.manifest import Manifest, settle
from frostline.store.records import ID_BYTES, encode
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
        with stored_or_kept(folder), ExitStack() as undo:
            self._in_use = undo.enter_context(use_key(folder))
            with self._turn():
                if settle(folder, manifest) is None:
                    manifest.write(folder)
                self._segment = Segment.take(folder, manifest)
            undo.pop_all()
        self._catalogue = Catalogue(folder, manifest)
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
        positions = first_positions(row_ids)
        self._catalogue.refresh()
        self._settle(row_ids)
        with self._turn_with_news():
            taken = (self._intact, self._claimed, self._catalogue, self._claims)
            free = (i for i in positions if not any(i in of_some for of_some in taken))
            chosen = list(islice(free, limit))
            self._segment.claim(chosen)
        self._claimed.update(chosen)
        return [positions[row_id] for row_id in chosen]

    def claimed(self, row_ids: Sequence[bytes]) -> list[bool]:
        """Of each row whether a live writer claims it, this one included."""
        self._check_process()
        with self._turn_with_news():
            return [row_id in self._claimed or row_id in self._claims for row_id in row_ids]

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
        specs = self._manifest.values
        counts = [len(row_ids), *map(len, values)]
        if len(values) != len(specs) or len(set(counts)) > 1:
            raise StoreError(
                f"{len(row_ids)} row ids, and {len(values)} values with {counts[1:]} rows were "
                f"given; a row has {len(specs)} values. Give each value with one row for each id."
            )
        first = first_positions(row_ids)
        self._settle(row_ids)
        new = {row_id: at for row_id, at in first.items() if row_id not in self._intact}
        if not new:
            return
        records, contents = encode(specs, row_ids, values, list(new.values()))
        self._budget.make_room(records.nbytes + sum(content.nbytes for content in contents))
        self._segment.append(records, contents)
        self._intact.update(new)
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
            self._settle(row_ids)
            with self._turn_with_news():
                known = (self._catalogue, self._intact, self._claimed)
                others = {i for i in row_ids if not any(i in of_some for of_some in known)}
            free = any(row_id not in self._claims for row_id in others)
            if not others or free or time.monotonic() >= end:
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
        with self._in_use:
            try:
                self._segment.flush()
            finally:
                with self._turn():
                    self._segment.close()

    def _turn(self) -> FileLock:
        held = lock(self._folder / TURN)
        assert held is not None  # it waits
        return held

    @contextmanager
    def _turn_with_news(self) -> Iterator[None]:
        """The key's turn, once what others stored and claim is taken in."""
        with stored_or_kept(self._folder), self._turn():
            self._catalogue.refresh()
            self._claims.refresh()
            yield

    def _settle(self, row_ids: Sequence[bytes]) -> None:
        """Check rows that others say are complete, each once. Takes long: not in the key's turn."""
        new = {i for i in row_ids if i not in self._intact and i in self._catalogue}
        self._catalogue.check(new)
        self._intact.update(i for i in new if i in self._catalogue)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(
                f"this writer of {self._folder} was made in process {self._process} and is used "
                f"in process {os.getpid()}. Open a writer of its own in each process."
            )


def first_positions(row_ids: Sequence[bytes]) -> dict[bytes, int]:
    """Where each distinct id stands first, in order; refuses what is no id."""
    found: dict[bytes, int] = {}
    for position, row_id in enumerate(row_ids):
        if len(row_id) != ID_BYTES:
            raise StoreError(
                f"a row id is {ID_BYTES} bytes, and one of {len(row_id)} was given: {row_id!r}. "
                "Use a 128-bit hash of the sample and its view."
            )
        found.setdefault(row_id, position)
    return found


def use_key(folder: Path) -> FileLock:
    """Keep `folder`, made if need be, from being removed while it is used, and say it was used."""
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(exist_ok=True)
            held = lock(folder / IN_USE, mode="shared")
        except (FileNotFoundError, FileExistsError):
            if folder.is_file():
                raise
            continue  # `prune` removed it in between, or before `mkdir` looked at what it had met
        assert held is not None  # it waits
        with suppress(OSError):
            os.utime(folder / IN_USE)
        return held
