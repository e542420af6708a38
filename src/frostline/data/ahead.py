"""Samples that are loaded in the background, while a model is followed and its forms are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Lock
from typing import Any, final

from torch import Tensor

from frostline.data.ordered import count_threads

_MOST_BYTES = 256 << 20  # of samples that wait to be taken


@final
class Ahead:
    """Loads rows in their order, up to some memory; each is handed out once.

    One core is left to whoever works meanwhile. What could not be loaded is loaded again by who
    wants it, and says there what is wrong.

    Args:
        after: what is loaded first; both share the memory.
    """

    def __init__(
        self, load: Callable[[int], Any], rows: Iterable[int], *, after: Ahead | None = None
    ) -> None:
        self._load = load
        self._lock = Lock()
        self._is_over = False
        self._bytes = 0
        self._after = after
        first = [] if after is None else list(after._found.values())
        threads = max(1, count_threads(None) - 1)
        self._pool = ThreadPoolExecutor(threads, "frostline-ahead", partial(wait, first))
        self._found: dict[int, Future[Any]] = {
            row: self._pool.submit(self._loaded, row) for row in rows
        }
        self._pool.shutdown(wait=False)  # takes no more, and its threads end with the last

    def take(self, row: int) -> Any | None:
        """What was loaded of a row, once; None where nothing was."""
        with self._lock:
            future = self._found.pop(row, None)
        if future is None or future.cancel():
            return None
        try:
            return future.result()
        except (Exception, CancelledError):
            return None

    def end(self) -> None:
        """Let go of all that was not taken; nothing is loaded any more when this returns."""
        self._is_over = True
        with self._lock:
            left, self._found = list(self._found.values()), {}
        for future in left:
            if not future.cancel():
                future.exception()  # waits for it

    def _loaded(self, row: int) -> Any | None:
        before = 0 if self._after is None else self._after._bytes
        if self._is_over or before + self._bytes > _MOST_BYTES:
            return None
        sample = self._load(row)
        with self._lock:
            self._bytes += sample.nbytes if isinstance(sample, Tensor) else _MOST_BYTES
        return sample
