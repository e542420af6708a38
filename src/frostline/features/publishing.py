"""Computed rows become visible in groups, each once the cut is proven to be the one of its key."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, final

from torch import Tensor

from frostline.cutting import Cut
from frostline.errors import FrostlineError
from frostline.store import Writer

# A proof reads all tensors of the prefix, so for large ones not each batch has a proof of its own.
_PROOF_SHARE: Final = 0.05  # of the time is what proofs may take
_MOST_BYTES: Final = 256 << 20  # of rows that wait for one


@final
class Publisher:
    """Takes computed rows and hands them to a writer."""

    def __init__(self, cut: Cut, writer: Writer) -> None:
        self._cut, self._writer = cut, writer
        self._waiting: list[tuple[list[bytes], Sequence[Tensor]]] = []
        self._bytes = 0
        self._proof_seconds = 0.0
        self._proven_at = time.perf_counter()

    def put(self, row_ids: list[bytes], values: Sequence[Tensor]) -> None:
        """Keep rows, and publish all that wait where it is time for a proof.

        Raises:
            CutError, StoreError, OutputError: as `publish`.
        """
        self._waiting.append((row_ids, values))
        self._bytes += sum(value.nbytes for value in values)
        since = time.perf_counter() - self._proven_at
        if self._proof_seconds <= _PROOF_SHARE * since or self._bytes > _MOST_BYTES:
            self.publish()

    def publish(self) -> None:
        """Prove, then store what waits; on return it is complete for every later reader.

        Raises:
            CutError: the cut is another one now; what waited is dropped.
            StoreError, OutputError: as `Writer.put`.
        """
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        start = time.perf_counter()
        self._cut.check_current()
        self._proven_at = time.perf_counter()
        self._proof_seconds = self._proven_at - start
        for row_ids, values in waiting:
            self._writer.put(row_ids, values)


@contextmanager
def publishing(cut: Cut, writer: Writer) -> Iterator[Publisher]:
    """A publisher; at the end, and where the block fails, what waits is published."""
    publisher = Publisher(cut, writer)
    try:
        yield publisher
    except BaseException:
        with suppress(FrostlineError):  # the first failure is the one to tell
            publisher.publish()
        raise
    publisher.publish()
