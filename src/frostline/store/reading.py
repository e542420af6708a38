"""Rows for training: gathered straight from memory-mapped files.

Only the page cache holds the features; what this process keeps of a row is where it lies.
"""

from __future__ import annotations

import math
import mmap
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline._files import FileLock
from frostline.store.catalogue import Catalogue
from frostline.store.keys import ValueSpec
from frostline.store.layout import HEADER_BYTES, open_own, value_name
from frostline.store.records import decode, leading_shapes, unit_offsets
from frostline.store.row_index import Keys

Words: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

RESIDENT_BYTES = 1 << 30
_ASKED_EVERY = 4  # batches
# Rows of a batch for each segment, from where a copy for each segment, about ten microseconds, is
# quicker than one for each row.
_GROUPED = 64


@final
@dataclass(frozen=True, slots=True)
class Pads:
    """How shorter rows are padded to the longest of a batch.

    Attributes:
        fills: for each value the number it is padded with; empty for zeros.
        at_start: whether before the row, and not behind it.
    """

    fills: tuple[float, ...] = ()
    at_start: bool = False

    def without(self, place: int) -> Pads:
        """The same for all values but one."""
        return replace(self, fills=self.fills[:place] + self.fills[place + 1 :])


PADS = Pads()


@final
@dataclass(eq=False, repr=False)
class StoredRows:
    """A read-only view of stored rows in a fixed order; a row may be there several times.

    It pickles as the place of the rows: another process, as a worker of a `DataLoader`, finds and
    checks them anew, by calling `_again`.
    """

    _columns: Sequence[ValueColumn]
    _count: int
    _maps: Sequence[mmap.mmap]
    _held: FileLock | None  # keeps `prune` away as long as these rows live
    _again: Callable[[], StoredRows]
    _gathers: int = 0

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[Callable[[], StoredRows], tuple[()]]:
        return self._again, ()

    @property
    def specs(self) -> tuple[ValueSpec, ...]:
        """What a row holds."""
        return tuple(column.spec for column in self._columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the values of all rows, as they lie on disk; a row counts as often as given."""
        return sum(
            int(column.leading.prod(dim=1).sum()) * column.spec.unit_nbytes
            for column in self._columns
        )

    def gather(self, indices: Tensor, *, pads: Pads = PADS) -> tuple[Tensor, ...]:
        """The rows at `indices` `(batch,)`: one tensor for each value, in fresh memory.

        `(batch, *shape)` in the dtype that was computed. Ragged dimensions are as long as the
        batch's longest row; what is shorter is padded (see `shapes`), by default with zeros at
        its end.

        Raises:
            IndexError: an index is negative or beyond the last row.
        """
        fills = pads.fills or [0] * len(self._columns)
        found = tuple(
            column.gather(indices, fill=fill, at_start=pads.at_start)
            for column, fill in zip(self._columns, fills, strict=True)
        )
        self._gathers += 1
        if self._gathers % _ASKED_EVERY == 0 and sum(map(len, self._maps)) > RESIDENT_BYTES:
            self._give_back()
        return found

    def shapes(self, value: int = 0) -> Tensor:
        """Each row's own shape of a value, `(rows, dimensions)` int64."""
        column = self._columns[value]
        fixed = torch.tensor([column.spec.unit_shape], dtype=torch.int64).repeat(self._count, 1)
        return torch.cat([column.leading, fixed], dim=1)

    def _give_back(self) -> None:
        """Give pages back to the system, so that a store larger than memory does not fill it.

        Mapped pages count as resident until then; the page cache keeps them all the same. How many
        a read maps is the system's affair (up to megabytes around it), so what is resident is
        asked for.
        """
        if sys.platform == "linux" and _resident_file_bytes() > RESIDENT_BYTES:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)


def _resident_file_bytes() -> int:
    """Resident bytes of this process that belong to mapped files (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE


@final
@dataclass(frozen=True, slots=True)
class ValueColumn:
    """One value of all rows.

    Attributes:
        maps: of each segment, its units `(units, words)`.
        arrays: the same, for copies row by row.
        segment: of each row; `None` when there is one.
        offsets: of each row's first unit.
        leading: of each row, its sizes up to the last ragged dimension.
        scales: of each row; 0 where the value has none.
        whole: all units as they were computed, `(units, *shape)`, where that is what lies on disk
            and there is one segment.
    """

    spec: ValueSpec
    maps: Sequence[Tensor]
    arrays: Sequence[Words]
    segment: Tensor | None
    offsets: Tensor
    leading: Tensor
    scales: Tensor
    whole: Tensor | None = None

    def gather(self, indices: Tensor, *, fill: float = 0, at_start: bool = False) -> Tensor:
        """The rows at `indices`, as `StoredRows.gather` gives them."""
        offsets = self.offsets.index_select(0, indices)
        if self.whole is not None:  # in each step of a head, where all else would be felt
            return self.whole.index_select(0, offsets)
        scales = self.scales.index_select(0, indices)
        segments = None if self.segment is None else self.segment.index_select(0, indices)
        if not self.spec.ragged_count:
            content = self._fetch(offsets, segments)
            return decode(self.spec, content, self.spec.unit_shape, scales)
        leading = self.leading.index_select(0, indices)
        padded = leading.amax(dim=0).tolist() if len(indices) else [0] * leading.shape[1]
        words = self.maps[0].shape[1]
        # Torch's own memory: kernels may sum in another order where it is aligned otherwise.
        content = torch.zeros((len(indices), *padded, words), dtype=self.maps[0].dtype)
        of_rows = [0] * len(indices) if segments is None else segments.tolist()
        # Row by row, but in NumPy: a copy of a row takes longer there than what is around it.
        places = zip(of_rows, offsets.tolist(), leading.tolist(), strict=True)
        for row, (number, start, shape) in zip(content.numpy(), places, strict=True):
            units = self.arrays[number][start : start + math.prod(shape)]
            row[_own(shape, padded, at_start=at_start)] = units.reshape(*shape, words)
        whole = content.view(torch.uint8).flatten(1)
        values = decode(self.spec, whole, (*padded, *self.spec.unit_shape), scales)
        if fill:
            blank = torch.ones(values.shape[: 1 + len(padded)], dtype=torch.bool)
            for row, shape in zip(blank, leading.tolist(), strict=True):
                row[_own(shape, padded, at_start=at_start)] = False
            values[blank] = fill
        return values

    def _fetch(self, offsets: Tensor, segments: Tensor | None) -> Tensor:
        """A fresh copy of the units at `offsets` of these segments, `(units, bytes)`."""
        if segments is None:
            return self.maps[0].index_select(0, offsets).view(torch.uint8)
        found = self.maps[0].new_empty((len(offsets), self.maps[0].shape[1]))
        if _GROUPED * len(self.maps) <= len(offsets):
            for number, units in enumerate(self.maps):
                here = (segments == number).nonzero().squeeze(1)
                found[here] = units.index_select(0, offsets[here])
            return found.view(torch.uint8)
        rows = zip(found.numpy(), segments.tolist(), offsets.tolist(), strict=True)
        for row, number, start in rows:
            row[:] = self.arrays[number][start]
        return found.view(torch.uint8)


def _own(shape: Sequence[int], padded: Sequence[int], *, at_start: bool) -> tuple[slice, ...]:
    """Where in a padded row its own units are."""
    sizes = zip(shape, padded, strict=True)
    return tuple(slice(most - size, most) if at_start else slice(size) for size, most in sizes)


def map_rows(
    catalogue: Catalogue,
    keys: Keys,
    held: FileLock | None,
    again: Callable[[], StoredRows],
) -> StoredRows:
    """Rows in the order of `keys`, all of which must be complete and checked."""
    segments, places = catalogue.places(keys)
    used, segment_of = np.unique(segments, return_inverse=True)
    segment = None if len(used) <= 1 else torch.from_numpy(segment_of.astype(np.int64))
    columns, mapped = [], list[mmap.mmap]()
    for number, spec in enumerate(catalogue.manifest.values):
        offsets = np.empty(len(keys), dtype=np.int64)
        leading = np.empty((len(keys), len(spec.leading)), dtype=np.int64)
        scales = np.zeros(len(keys), dtype=np.float32)
        maps = []
        for each in used.tolist():
            here = np.flatnonzero(segments == each)
            rows = catalogue.segments[each]
            records = rows.log.records[places[here]]
            offsets[here], counts = unit_offsets(spec, number, records, places[here])
            leading[here] = leading_shapes(spec, number, records)
            if spec.is_scaled:
                scales[here] = records[f"scale{number}"]
            end = int((offsets[here] + counts).max())
            maps.append(_map(rows.folder / value_name(number), end, spec.unit_nbytes, mapped))
        maps = maps or [_map(Path(), 0, spec.unit_nbytes, mapped)]
        starts, sizes, factors = map(torch.from_numpy, (offsets, leading, scales))
        arrays = [units.numpy() for units in maps]
        whole = _whole(spec, maps) if segment is None else None
        columns.append(ValueColumn(spec, maps, arrays, segment, starts, sizes, factors, whole))
    return StoredRows(columns, len(keys), mapped, held, again)


def _whole(spec: ValueSpec, maps: Sequence[Tensor]) -> Tensor | None:
    if spec.ragged_count or spec.stored != spec.dtype or not maps[0].numel():
        return None
    return maps[0].view(spec.dtype).view(-1, *spec.unit_shape)


def _map(path: Path, units: int, unit_nbytes: int, mapped: list[mmap.mmap]) -> Tensor:
    """The units in words, `(units, words)`: float32, which torch copies fastest, or bytes.

    Mapped for reading only, and put into `mapped`: a map that could be written counts against the
    memory that the system promises, so a store larger than memory could not be mapped.
    """
    dtype = torch.float32 if unit_nbytes % 4 == 0 else torch.uint8
    shape = (units, unit_nbytes // dtype.itemsize)
    if units * unit_nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    with open_own(path) as file:
        size = HEADER_BYTES + units * unit_nbytes
        mapped.append(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    with warnings.catch_warnings(action="ignore"):  # that it may not be written, and nothing does
        return torch.frombuffer(mapped[-1], dtype=dtype, offset=HEADER_BYTES).view(shape)
