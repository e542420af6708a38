"""Who speaks: of several processes that a launcher started, the first one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


def is_first() -> bool:
    """Whether this process is the first of them, or alone."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


@contextmanager
def one_speaks() -> Iterator[None]:
    """In it nothing comes to standard output but from the first process."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123 - no file
        yield
