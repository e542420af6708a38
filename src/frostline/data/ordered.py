"""A function over many items in threads: results in order, only a few items ahead."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from frostline.errors import ConfigError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_THREADS = 16  # beyond it, decoding threads wait for the interpreter more than they decode


def ordered_map(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int | None = None,
    ahead: int,
    begin: Callable[[], object] | None = None,
) -> Generator[_Result, None, None]:
    """Yield `function(item)` for each item, in the order of the items.

    At most `ahead` items beyond the one taken last are computed or wait. When the iterator ends,
    fails or is closed, what has not begun is dropped and all threads have ended; the first error
    in a thread is raised where its result would have come.

    Args:
        begin: called in each thread before its first item.

    Raises:
        ConfigError: `threads` is less than 1.
    """
    pool = ThreadPoolExecutor(count_threads(threads), "frostline-data", initializer=begin)
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def count_threads(asked: int | None) -> int:
    """`asked`, or one thread for each core that this process may use, at most 16.

    Raises:
        ConfigError: `asked` is less than 1.
    """
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        return min(_MOST_THREADS, cores or 1)
    if asked < 1:
        raise ConfigError(f"asked for {asked} threads. Use 1 or more.")
    return asked
