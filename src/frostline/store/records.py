"""Rows as bytes: tensors to what is stored and back, and the log of complete rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from frostline.errors import StoreError
from frostline.store.keys import ValueSpec
from frostline.store.layout import HEADER_BYTES

Bytes: TypeAlias = npt.NDArray[np.uint8]
Integers: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Records: TypeAlias = npt.NDArray[np.void]

ID_BYTES = 16
_MOST_UNITS: Final = 2.0**48
_MOST_BYTES: Final = 2.0**62


def encode(
    values: Sequence[ValueSpec],
    row_ids: Sequence[bytes],
    given: Sequence[Tensor | Sequence[Tensor]],
    positions: Sequence[int],
) -> tuple[Records, list[Bytes]]:
    """The rows at `positions` of a batch: a record of each, to be sealed, and each value's bytes.

    Raises:
        StoreError: shape or dtype are not those of the value, or a number is too large for the
            storage type, or not finite where it has no place for that.
    """
    records = np.zeros(len(positions), dtype=record_dtype(values))
    records["id"] = np.frombuffer(b"".join(row_ids[at] for at in positions), dtype=f"V{ID_BYTES}")
    contents = []
    for number, (value, rows) in enumerate(zip(values, given, strict=True)):
        if isinstance(rows, Tensor) and not value.ragged_count:
            parts = [rows if len(positions) == len(rows) else rows[torch.tensor(positions)]]
        else:
            parts = [rows[position][None] for position in positions]
        stored, scales = zip(*(_stored(value, part) for part in parts), strict=True)
        content = np.concatenate(stored)
        if value.ragged_count:
            ragged = [at for at, size in enumerate(value.shape, start=1) if size is None]
            records[f"lengths{number}"] = [[part.shape[at] for at in ragged] for part in parts]
        if value.is_scaled:
            records[f"scale{number}"] = np.concatenate(scales)
        sizes = leading_shapes(value, number, records).prod(axis=1) * value.unit_nbytes
        ends = np.cumsum(sizes).tolist()
        pieces = zip([0, *ends[:-1]], ends, strict=True)
        records[f"sum{number}"] = [xxhash.xxh3_64_intdigest(content.data[a:b]) for a, b in pieces]
        contents.append(content)
    return records, contents


def decode(spec: ValueSpec, content: Tensor, shape: Sequence[int], scales: Tensor) -> Tensor:
    """Fresh bytes `(rows, bytes)` as rows of `shape` in the dtype that was computed.

    The result may share memory with `content`.
    """
    size = (len(content), *shape)
    if content.numel() == 0:
        return torch.zeros(size, dtype=spec.dtype)
    stored = content.view(spec.stored)
    if spec.is_scaled:
        stored = stored.float().mul_(scales[:, None])
    return stored.view(size).to(spec.dtype)


def storage_error(tensor: Tensor, storage: str) -> float:
    """How far a batch `(rows, ...)` moves by being stored: ||stored - computed|| / ||computed||.

    0 where nothing is lost.

    Raises:
        StoreError: as `encode`.
    """
    rows = tensor.detach().cpu().resolve_conj().resolve_neg()
    spec = ValueSpec("tensor", tuple(rows.shape[1:]), rows.dtype, storage)
    if spec.stored == spec.dtype or rows.numel() == 0:
        return 0.0
    content, scales = _stored(spec, rows)
    stored = torch.from_numpy(content).view(len(rows), -1)
    back = decode(spec, stored, rows.shape[1:], torch.from_numpy(scales).float())
    size = float(rows.double().norm())
    return float((back.double() - rows.double()).norm()) / size if size else 0.0


def _stored(spec: ValueSpec, batch: Tensor) -> tuple[Bytes, npt.NDArray[np.float64]]:
    """The bytes of some rows, and the scale of each, which counts where the value has one."""
    shape = batch.shape[1:]
    fits = len(shape) == len(spec.shape) and all(
        wanted in (None, found) for wanted, found in zip(spec.shape, shape, strict=True)
    )
    if not fits or batch.dtype != spec.dtype:
        raise StoreError(
            f"value '{spec.name}' is to be {spec.dtype} of shape {spec.shape} per sample "
            f"(None: any length), and {batch.dtype} of shape {tuple(shape)} was given. "
            "Open the store with the values that are computed."
        )
    rows = batch.detach().cpu().resolve_conj().resolve_neg().contiguous()
    scales = torch.zeros(len(rows))
    if spec.is_scaled and rows.numel():
        numbers = rows.reshape(len(rows), -1).float()
        largest = numbers.abs().amax(dim=1)
        if not bool(largest.isfinite().all()):
            raise _too_large(spec, rows)
        scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
        rows = (numbers / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    elif spec.stored != spec.dtype:
        rounded = rows.to(spec.stored)
        if not torch.equal(rounded.isinf(), rows.isinf()):
            raise _too_large(spec, rows)
        rows = rounded
    return rows.flatten().view(torch.uint8).numpy(), scales.double().numpy()


def _too_large(spec: ValueSpec, rows: Tensor) -> StoreError:
    return StoreError(
        f"value '{spec.name}' holds {float(rows.abs().max()):.3g}, which storage "
        f"'{spec.storage}' cannot keep. Use storage 'bfloat16' for large numbers, "
        "or 'same' for infinities and NaN."
    )


def record_dtype(values: Sequence[ValueSpec]) -> np.dtype[np.void]:
    """The layout of one record; little-endian, packed."""
    fields: list[Any] = [("id", f"V{ID_BYTES}")]
    for number, value in enumerate(values):
        if value.ragged_count:  # in a tuple, else the lengths of one dimension would be no array
            lengths = (f"lengths{number}", "<u8", (value.ragged_count,))
            fields += [(f"offset{number}", "<u8"), lengths]
        if value.is_scaled:
            fields.append((f"scale{number}", "<f8"))
        fields.append((f"sum{number}", "<u8"))
    return np.dtype([*fields, ("check", "<u8")])


def seal(
    values: Sequence[ValueSpec],
    records: Records,
    *,
    starts: Sequence[int],
    identity: int,
    first: int,
) -> list[int]:
    """Complete records `first`, `first + 1`, ... of rows whose units begin at `starts`.

    Gives where the units of each value end.
    """
    ends = []
    for number, (value, start) in enumerate(zip(values, starts, strict=True)):
        counts = leading_shapes(value, number, records).prod(axis=1)
        if value.ragged_count:
            records[f"offset{number}"] = start + np.cumsum(counts) - counts
        ends.append(start + int(counts.sum()))
    records["check"] = _checks(records, identity, first)
    return ends


@final
@dataclass(frozen=True, slots=True)
class Log:
    """Records of a log as they were read; `sound` are those that prove themselves."""

    records: Records
    sound: Mask


def parse(values: Sequence[ValueSpec], raw: bytes, *, identity: int, first: int = 0) -> Log:
    """Read whole records, `first` and on; a torn one at the end is left out."""
    dtype = record_dtype(values)
    records = np.frombuffer(raw, dtype=dtype, count=len(raw) // dtype.itemsize)
    matches: Mask = np.equal(records["check"], _checks(records, identity, first))
    return Log(records, matches & _is_possible(values, records))


def _is_possible(values: Sequence[ValueSpec], records: Records) -> Mask:
    """Which records speak of places that a file can have; sums with these do not overflow."""
    possible = np.ones(len(records), dtype=np.bool_)
    for number, value in enumerate(values):
        if value.ragged_count:
            offsets = records[f"offset{number}"].astype(np.float64)
            lengths = records[f"lengths{number}"].astype(np.float64)
            fixed = math.prod(size for size in value.leading if size is not None)
            units = lengths.prod(axis=1) * fixed
            possible &= (offsets < _MOST_UNITS) & (lengths < _MOST_UNITS).all(axis=1)
            possible &= (units < _MOST_UNITS) & (
                (offsets + units) * value.unit_nbytes < _MOST_BYTES
            )
    return possible


def leading_shapes(value: ValueSpec, number: int, records: Records) -> Integers:
    """Each row's own sizes in the dimensions up to the last ragged one."""
    shapes = np.empty((len(records), len(value.leading)), dtype=np.int64)
    ragged = 0
    for at, size in enumerate(value.leading):
        shapes[:, at] = records[f"lengths{number}"][:, ragged] if size is None else size
        ragged += size is None
    return shapes


def unit_offsets(
    value: ValueSpec, number: int, records: Records, places: Integers
) -> tuple[Integers, Integers]:
    """Where the rows' units begin, and how many there are; `places` are the records' own."""
    offsets = records[f"offset{number}"].astype(np.int64) if value.ragged_count else places
    return offsets, leading_shapes(value, number, records).prod(axis=1)


def unit_totals(values: Sequence[ValueSpec], log: Log) -> list[int]:
    """How many units of each value a log's rows take, from the start of the data file."""
    totals = []
    for number, value in enumerate(values):
        records = log.records[log.sound] if value.ragged_count else log.records
        offsets, counts = unit_offsets(value, number, records, np.arange(len(records)))
        totals.append(int((offsets + counts).max(initial=0)))
    return totals


def data_bytes(
    value: ValueSpec, number: int, records: Records, places: Integers
) -> tuple[Integers, Integers]:
    """Where rows begin in the value's file, and how many bytes they have."""
    offsets, counts = unit_offsets(value, number, records, places)
    return HEADER_BYTES + offsets * value.unit_nbytes, counts * value.unit_nbytes


def _checks(records: Records, identity: int, first: int) -> npt.NDArray[np.uint64]:
    size = records.dtype.itemsize
    view = np.ascontiguousarray(records).view(np.uint8).reshape(-1).data
    hashed, mask = xxhash.xxh3_64_intdigest, (1 << 64) - 1
    found = [
        hashed(view[at * size : (at + 1) * size - 8], (identity + first + at) & mask)
        for at in range(len(records))
    ]
    return np.array(found, dtype=np.uint64)
