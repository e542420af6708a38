"""Sets of rows as ranges: sorted, apart from each other, none empty, each in steps of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

Ranges = tuple[range, ...]


def union(rows: Iterable[range], others: Iterable[range] = ()) -> Ranges:
    """The rows in either; ranges that touch become one."""
    joined: list[range] = []
    for piece in sorted([*rows, *others], key=lambda r: r.start):
        if joined and piece.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, piece.stop))
        elif piece:
            joined.append(piece)
    return tuple(joined)


def overlaps(rows: Sequence[range], others: Sequence[range]) -> Iterator[tuple[int, range]]:
    """What each of `rows` shares with each of `others`, beside the index of the former."""
    # Both are sorted, and their ranges lie apart.
    mine = theirs = 0
    while mine < len(rows) and theirs < len(others):
        one, other = rows[mine], others[theirs]
        if shared := range(max(one.start, other.start), min(one.stop, other.stop)):
            yield mine, shared
        if one.stop <= other.stop:
            mine += 1
        else:
            theirs += 1


def common(rows: Iterable[range], others: Iterable[range]) -> Ranges:
    """The rows in both."""
    return union(shared for _, shared in overlaps(union(rows), union(others)))


def without(rows: Iterable[range], others: Iterable[range]) -> Ranges:
    """The rows that are not in `others`."""
    kept, gone = union(rows), union(others)
    if not kept:
        return ()
    edges = [0, *(edge for r in gone for edge in (r.start, r.stop)), kept[-1].stop]
    gaps = [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    return common(kept, gaps)


def all_rows(tensor: Tensor) -> range:
    """Every row of the tensor: the indices of its first dimension; of a scalar, none."""
    return range(tensor.shape[0] if tensor.dim() else 0)


def covers(rows: Iterable[range], tensor: Tensor) -> bool:
    """Whether these are all of the tensor's rows, and there are any."""
    whole = all_rows(tensor)
    return bool(whole) and union(rows) == (whole,)


def suffix(rows: range | None) -> str:
    """How rows are shown behind a tensor's name: `[0:100]`; nothing for the whole tensor."""
    return "" if rows is None else f"[{rows.start}:{rows.stop}]"
