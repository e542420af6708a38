"""Work in parts that the live writers of a key share out among each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, Literal, final

import xxhash

from frostline.store.writing import POLL_SECONDS, Writer

_LOOKED_AT: Final = 256  # parts for each look at what others claim
_POLL_SHARE: Final = 0.1  # of the time is what looking may take, since nobody else can then


@final
class SharedParts:
    """Parts of some work, each one live writer's; those of a writer that ended are free again.

    A part is claimed as a row is, under ids that no row has, so whatever frees rows frees it. It
    only says who begins with what: that no row is computed twice is up to the claims of rows.

    Args:
        work: a name for the work and how it is divided, the same for all who share it.
        count: of its parts.
    """

    def __init__(self, writer: Writer, work: str, count: int) -> None:
        self._writer, self._count = writer, count
        self._work = work.encode()
        self._next = 0
        self._taken: list[int] = []
        self._unfinished: list[int] | None = None

    @property
    def of_others(self) -> int:
        """About how many parts other writers took."""
        return max(0, self._next - len(self._taken))

    def __iter__(self) -> Iterator[int]:
        """Take part after part, as each is asked for, until none is free."""
        while (part := self._take()) is not None:
            self._taken.append(part)
            yield part

    def finish(self) -> None:
        """Say that all that was taken is done."""
        ids = self._ids("done", self._taken)
        self._writer.claim(ids, len(ids))

    def wait(self, timeout_seconds: float) -> Literal["done", "free", "taken"]:
        """Wait until all parts are done or one is free; `taken` is neither, after the timeout."""
        if self._unfinished is None:
            self._unfinished = list(range(self._count))
        end = time.monotonic() + timeout_seconds
        while True:
            start = time.monotonic()
            done = self._writer.claimed(self._ids("done", self._unfinished))
            self._unfinished = [
                n for n, is_done in zip(self._unfinished, done, strict=True) if not is_done
            ]
            if not self._unfinished:
                return "done"
            held = self._writer.claimed(self._ids("taken", self._unfinished))
            now = time.monotonic()
            if not all(held):
                return "free"
            if now >= end:
                return "taken"
            time.sleep(max(POLL_SECONDS, (now - start) / _POLL_SHARE))

    def _take(self) -> int | None:
        first = self._next
        for start in [*range(first, self._count, _LOOKED_AT), *range(0, first, _LOOKED_AT)]:
            parts = range(start, min(start + _LOOKED_AT, self._count))
            if found := self._writer.claim(self._ids("taken", parts), 1):
                self._next = max(self._next, parts[found[0]] + 1)
                return parts[found[0]]
        self._next = self._count
        return None

    def _ids(self, state: str, parts: range | list[int]) -> list[bytes]:
        return [
            xxhash.xxh3_128_digest(b"%s\0%s\0%d" % (self._work, state.encode(), part))
            for part in parts
        ]
