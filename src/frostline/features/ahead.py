"""Samples decoded ahead, in threads, while the model is still being cut and tuned.

Worth it where the features are likely to be missing; bounded in memory, and given up at once when
they turn out to be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor

from frostline.data import count_threads
from frostline.features.sources import Source

MOST_BYTES = 1 << 28


@final
class AheadSource:
    """A source whose first rows are being loaded already; each is handed out once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._started: dict[int, Future[Any]] = {}
        self.samples = source.samples
        self.views = source.views
        self.transform = source.transform

    def start(self, pool: ThreadPoolExecutor, rows: Sequence[int]) -> None:
        """Load these rows in the pool."""
        self._started.update((row, pool.submit(self._source.load, row)) for row in rows)

    def ids(self, rows: Sequence[int], *, keep: bool) -> list[bytes]:
        return self._source.ids(rows, keep=keep)

    def drop(self, rows: Iterable[int]) -> None:
        some = list(rows)
        for row in some:
            if started := self._started.pop(row, None):
                started.cancel()
        self._source.drop(some)

    def load(self, row: int) -> Any:
        started = self._started.pop(row, None)
        if started is None or started.cancel():
            return self._source.load(row)
        return started.result()

    def targets(self) -> Tensor:
        return self._source.targets()

    def name(self, sample: int) -> str:
        return self._source.name(sample)


@contextmanager
def ahead(sources: Sequence[Source]) -> Iterator[tuple[AheadSource, ...]]:
    """Begin to load the sources' rows, one source after the other, up to `MOST_BYTES`."""
    found = tuple(AheadSource(source) for source in sources)
    pool = ThreadPoolExecutor(count_threads(None), thread_name_prefix="frostline-ahead")
    try:
        left = MOST_BYTES
        for source, wrapped in zip(sources, found, strict=True):
            count = source.samples * source.views
            size = max(1, _nbytes(source.load(0)))
            some = range(min(count, left // size))
            wrapped.start(pool, some)
            left -= len(some) * size
        yield found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _nbytes(loaded: Any) -> int:
    return loaded.nbytes if isinstance(loaded, Tensor) else MOST_BYTES
