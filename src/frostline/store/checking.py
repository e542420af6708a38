"""Whether stored bytes are those that were written.

They are read, never mapped: an unreadable sector is then a damaged row and not a dead process.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from frostline.store.keys import ValueSpec
from frostline.store.layout import open_own, value_name
from frostline.store.numbers import Integers
from frostline.store.records import Mask, Records, data_bytes, leading_shapes, unit_offsets

CHUNK_BYTES: Final = 4 << 20
_LONGEST_EMPTY: Final = 1 << 20  # a row without bytes may still be long


def damaged(
    segment: Path, number: int, value: ValueSpec, records: Records, places: Integers
) -> Mask:
    """Which rows' bytes of one value do not match the checksum in their record."""
    offsets, counts = unit_offsets(value, number, records, places)
    starts, sizes = data_bytes(value, offsets, counts)
    order = np.argsort(starts, kind="stable")
    bad = np.ones(len(records), dtype=np.bool_)
    try:
        with open_own(segment / value_name(number)) as file:
            end = file.seek(0, 2)
            fits = starts + sizes <= end
            if value.ragged_count:
                lengths = leading_shapes(value, number, records)
                fits &= lengths.max(axis=1, initial=0) <= max(end, _LONGEST_EMPTY)
            order = order[fits[order]]
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
    large = sizes > CHUNK_BYTES
    breaks = (starts[1:] != ends[:-1]) | (starts[1:] // CHUNK_BYTES != starts[:-1] // CHUNK_BYTES)
    breaks |= large[1:] | large[:-1]
    firsts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
    found: list[int | None] = []
    room = np.empty(2 * CHUNK_BYTES, dtype=np.uint8).data
    for first, last in zip(firsts, [*firsts[1:], len(starts)], strict=True):
        begin = int(starts[first])
        if large[first]:  # alone in its run
            found.append(_sum_in_pieces(file, begin, int(ends[first]), room))
            continue
        content = room[: int(ends[last - 1]) - begin]
        if not _fill(file, begin, content):
            found += [None] * (last - first)
            continue
        cuts = (ends[first:last] - begin).tolist()
        hashed = xxhash.xxh3_64_intdigest
        found += [hashed(content[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    return found


def _sum_in_pieces(file: FileIO, begin: int, end: int, room: memoryview) -> int | None:
    """Checksum of a piece that is not to be held in memory at once."""
    state = xxhash.xxh3_64()
    for at in range(begin, end, len(room)):
        content = room[: min(len(room), end - at)]
        if not _fill(file, at, content):
            return None
        state.update(content)
    return state.intdigest()


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
