"""Bytes, seconds, counts and long lists as people read them, and a stopwatch for the seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final


def format_bytes(count: float) -> str:
    """`1536` -> `1.5 KB`; decimal units, as disks and torch's own tables use."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 999.5:  # from there on it would round to 1000
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if abs(size) < 999.5 else f"{size:,.0f} TB"


def format_count(count: int) -> str:
    """`61100840` -> `61,100,840`."""
    return f"{count:,}"


def format_seconds(seconds: float) -> str:
    """`0.0042` -> `4.2 ms`, `75` -> `1 min 15 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY_BYTES = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """`10GB`, `1.5 MB`, `2GiB` or a plain number of bytes.

    Raises:
        ValueError: it is none of these.
    """
    compact = text.replace(" ", "").upper()
    number = compact.rstrip("BKMGTI")
    try:
        size = int(float(number) * {**_BYTES, **_BINARY_BYTES}[compact[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise ValueError(f"'{text}' is no size such as 10GB, 500MB or 2GiB.")
    return size


def some_of(things: Sequence[object], *, most: int) -> str:
    """The first `most` of `things` separated by commas, and how many more there are."""
    named = ", ".join(str(thing) for thing in things[:most])
    return named if len(things) <= most else f"{named} and {len(things) - most} more"


@final
@dataclass(slots=True)
class Stopwatch:
    """Seconds that many short blocks took in all; not for several threads at once."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
