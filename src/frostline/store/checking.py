"""Whether stored bytes are those that were written.

They are read, never mapped: an unreadable sector is then a damaged row and not a dead process.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from frostline.store.keys import ValueSpec
from frostline.store.layout import value_name
from frostline.store.numbers import Integers
from frostline.store.records import Mask, Records, data_bytes, unit_offsets

CHUNK_BYTES: Final = 4 << 20


def damaged(
    segment: Path, number: int, value: ValueSpec, records: Records, places: Integers
) -> Mask:
    """Which rows' bytes of one value do not match the checksum in their record."""
    offsets, counts = unit_offsets(value, number, records, places)
    starts, sizes = data_bytes(value, offsets, counts)
    order = np.argsort(starts, kind="stable")
    bad = np.ones(len(records), dtype=np.bool_)
    try:
        with (segment / value_name(number)).open("rb", buffering=0) as file:
            end = file.seek(0, 2)
            order = order[starts[order] + sizes[order] <= end]
            found = _sums(file, starts[order], sizes[order])
    except OSError:
        return bad
    matches = [a == b for a, b in zip(found, records[f"sum{number}"][order].tolist(), strict=True)]
    bad[order] = ~np.array(matches, dtype=np.bool_)
    return bad


def _sums(file: FileIO, starts: Integers, sizes: Integers) -> list[int | None]:
    """Checksums of the pieces, which come in order; `None` where one cannot be read."""
    if not len(starts):
        return []
    ends = starts + sizes
    breaks = (starts[1:] != ends[:-1]) | (starts[1:] // CHUNK_BYTES != starts[:-1] // CHUNK_BYTES)
    firsts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
    found: list[int | None] = []
    room = np.empty(_largest(starts, ends, firsts), dtype=np.uint8).data
    for first, last in zip(firsts, [*firsts[1:], len(starts)], strict=True):
        begin = int(starts[first])
        content = room[: int(ends[last - 1]) - begin]
        if not _fill(file, begin, content):
            found += [None] * (last - first)
            continue
        cuts = (ends[first:last] - begin).tolist()
        hashed = xxhash.xxh3_64_intdigest
        found += [hashed(content[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    return found


def _largest(starts: Integers, ends: Integers, firsts: Sequence[int]) -> int:
    """Bytes of the longest run."""
    lasts = [*(first - 1 for first in firsts[1:]), len(ends) - 1]
    return int((ends[lasts] - starts[list(firsts)]).max())


def _fill(file: FileIO, start: int, room: memoryview) -> bool:
    """Read into all of `room`; tells whether the disk gave that much."""
    done = 0
    try:
        file.seek(start)
        while done < len(room):
            count = file.readinto(room[done:])
            if not count:
                return False
            done += count
    except OSError:
        return False
    return True
