"""Filling a store, alone or with other processes at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, final

import numpy as np
from torch import Tensor

from frostline._files import FileLock, lock
from frostline.errors import StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.homes import home_of
from frostline.store.layout import IN_USE, TURN
from frostline.store.manifest import Manifest, settle
from frostline.store.records import Mask, encode
from frostline.store.removal import StoreBudget
from frostline.store.row_index import Keys, RowIndex, first_places, key_bytes, row_keys
from frostline.store.segments import OtherClaims, Segment, stored_or_kept

FLUSH_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
FULL_BYTES: Final = 256 << 20  # of a segment that is to be used elsewhere
FULL_SECONDS: Final = 300.0


@final
class Writer:
    """Stores rows of one key; for one thread of the process that made it.

    Killed at any instant, it leaves every row whose `put` returned.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        budget: StoreBudget,
        *,
        home: str | None = None,
        when_full: Callable[[], None] | None = None,
    ) -> None:
        """Open the key.

        Args:
            home: of the folder; by default found out.
            when_full: called each time a segment is let go that is large enough, or old enough,
                to be used elsewhere; without it one segment is written to the end.
        """
        self._folder, self._manifest, self._budget = folder, manifest, budget
        self._when_full = when_full
        self._process, self._closed = os.getpid(), False
        with stored_or_kept(folder), ExitStack() as undo:
            self._in_use = undo.enter_context(use_key(folder))
            with turn(self._folder):
                if settle(folder, manifest) is None:
                    manifest.write(folder)
                self._home = home or home_of(folder)
                self._segment = Segment.take(folder, manifest, self._home)
            undo.pop_all()
        self._catalogue = Catalogue(folder, manifest)
        self._claims = OtherClaims(folder, self._segment.folder, self._home)
        self._intact = RowIndex()  # complete, and checked by this writer or its own
        self._claimed: set[bytes] = set()  # and not stored by it yet
        self._flushed_at = self._began_at = time.monotonic()

    def claim(self, row_ids: Sequence[bytes], limit: int) -> list[int]:
        """Positions of up to `limit` rows that this writer is now to compute.

        Those are missing or damaged, and claimed by no live writer, this one included. An id that
        is there several times is claimed once. Shorter than `limit`, and even empty, when others
        hold the rest: then `wait`.

        Raises:
            OutputError: the claim cannot be written.
        """
        self._check_process()
        keys = row_keys(row_ids)
        first = first_places(keys)
        self._catalogue.refresh()
        self._settle(keys)
        with self._turn_with_news():
            missing = first[~self._stored(keys[first])].tolist()
            free = (at for at in missing if not self._is_claimed(row_ids[at]))
            chosen = list(islice(free, limit))
            self._segment.claim([row_ids[at] for at in chosen])
        self._claimed.update(row_ids[at] for at in chosen)
        return chosen

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
        keys = row_keys(row_ids)
        first = first_places(keys)
        self._settle(keys)
        new = first[~self._intact.has(keys[first])]
        if not len(new):
            return
        records, contents = encode(specs, row_ids, values, new.tolist())
        self._budget.make_room(records.nbytes + sum(content.nbytes for content in contents))
        self._segment.append(records, contents)
        self._add_intact(keys[new])
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flush()
        old = time.monotonic() - self._began_at > FULL_SECONDS
        if self._when_full and (old or self._segment.nbytes > FULL_BYTES):
            self._begin_segment()
            self._when_full()

    def wait(self, row_ids: Sequence[bytes], timeout_seconds: float) -> None:
        """Wait while the missing rows are all claimed by other live writers.

        Returns when all are complete, when one can be claimed because its writer ended, when
        those that are missing are claimed by this writer, or after `timeout_seconds`.
        """
        self._check_process()
        self._flush()
        end = time.monotonic() + timeout_seconds
        keys = row_keys(row_ids)
        while True:
            self._settle(keys)
            with self._turn_with_news():
                missing = keys[~self._stored(keys)]
                others = [i for i in key_bytes(missing) if i not in self._claimed]
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
                with turn(self._folder):
                    self._segment.close()

    def _begin_segment(self) -> None:
        """Go on in another segment; what is claimed and not stored yet is claimed there."""
        self._flush()
        full = self._segment
        with turn(self._folder):
            self._segment = Segment.take(self._folder, self._manifest, self._home)
            self._segment.claim(list(self._claimed))
            full.close()
        self._claims = OtherClaims(self._folder, self._segment.folder, self._home)
        self._began_at = time.monotonic()

    def _flush(self) -> None:
        self._segment.flush()
        self._flushed_at = time.monotonic()

    @contextmanager
    def _turn_with_news(self) -> Iterator[None]:
        """The key's turn, once what others stored and claim is taken in."""
        with stored_or_kept(self._folder), turn(self._folder):
            self._catalogue.refresh()
            self._claims.refresh()
            yield

    def _stored(self, keys: Keys) -> Mask:
        """Which of the rows are complete."""
        found = self._intact.has(keys)
        found[~found] = self._catalogue.has(keys[~found])
        return found

    def _is_claimed(self, row_id: bytes) -> bool:
        return row_id in self._claimed or row_id in self._claims

    def _settle(self, keys: Keys) -> None:
        """Check rows that others say are complete, each once. Takes long: not in the key's turn."""
        unknown = keys[~self._intact.has(keys)]
        new = unknown[self._catalogue.has(unknown)]
        if len(new):
            self._catalogue.check(new)
            self._add_intact(new[self._catalogue.has(new)])

    def _add_intact(self, keys: Keys) -> None:
        self._intact.add(keys, np.zeros(len(keys), dtype=np.int64))
        self._claimed.difference_update(key_bytes(keys))

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(
                f"this writer of {self._folder} was made in process {self._process} and is used "
                f"in process {os.getpid()}. Open a writer of its own in each process."
            )


def turn(folder: Path) -> FileLock:
    """The key's turn, once the others had theirs."""
    held = lock(folder / TURN, needed=False)
    assert held is not None  # it waits
    return held


def use_key(folder: Path) -> FileLock:
    """Keep `folder`, made if need be, from being removed while it is used, and say it was used."""
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(exist_ok=True)
            held = lock(folder / IN_USE, mode="shared", needed=False)
        except (FileNotFoundError, FileExistsError):
            if folder.is_file():
                raise
            continue  # `prune` removed it in between, or before `mkdir` looked at what it had met
        assert held is not None  # it waits
        with suppress(OSError):
            os.utime(folder / IN_USE)
        return held
