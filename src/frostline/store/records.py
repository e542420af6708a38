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


@final
@dataclass(frozen=True, slots=True)
class Block:
    """One value of several rows, as stored.

    Attributes:
        content: the rows' bytes, one after the other.
        counts: units of each row; 1 where nothing is ragged.
        lengths: (rows, ragged dimensions).
        scales: of each row; 0 where the value has none.
    """

    content: Bytes
    counts: Integers
    lengths: Integers
    scales: npt.NDArray[np.float64]


def encode(spec: ValueSpec, given: Tensor | Sequence[Tensor], positions: Sequence[int]) -> Block:
    """The rows at `positions` of a batch as stored bytes.

    Raises:
        StoreError: shape or dtype are not those of `spec`, or a number is too large for the
            storage type, or not finite where it has no place for that.
    """
    if isinstance(given, Tensor) and spec.ragged_count == 0:
        batch = given if len(positions) == len(given) else given[torch.tensor(positions)]
        _check(spec, batch, batch.shape[1:])
        content, scales = _stored(spec, batch)
        return Block(content, *_uniform(len(positions), ()), scales)
    pieces = []
    for position in positions:
        row = given[position]
        _check(spec, row, row.shape)
        content, scales = _stored(spec, row[None])
        lengths = [n for n, s in zip(row.shape, spec.shape, strict=True) if s is None]
        pieces.append(Block(content, *_uniform(1, row.shape[: len(spec.leading)], lengths), scales))
    columns = zip(*((b.content, b.counts, b.lengths, b.scales) for b in pieces), strict=True)
    return Block(*map(np.concatenate, columns))


def decode(spec: ValueSpec, content: Tensor, shape: Sequence[int], scales: Tensor | None) -> Tensor:
    """Fresh bytes `(rows, bytes)` as rows of `shape` in the dtype that was computed.

    The result may share memory with `content`.
    """
    size = (len(content), *shape)
    if content.numel() == 0:
        return torch.zeros(size, dtype=spec.dtype)
    stored = content.view(spec.stored)
    if scales is not None:
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
    back = decode(
        spec,
        torch.from_numpy(content).view(len(rows), -1),
        rows.shape[1:],
        torch.from_numpy(scales).float() if spec.is_scaled else None,
    )
    size = float(rows.double().norm())
    return float((back.double() - rows.double()).norm()) / size if size else 0.0


def _check(spec: ValueSpec, tensor: Tensor, shape: Sequence[int]) -> None:
    fits = len(shape) == len(spec.shape) and all(
        wanted in (None, found) for wanted, found in zip(spec.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != spec.dtype:
        raise StoreError(
            f"value '{spec.name}' is to be {spec.dtype} of shape {spec.shape} per sample "
            f"(None: any length), and {tensor.dtype} of shape {tuple(shape)} was given. "
            "Open the store with the values that are computed."
        )


def _stored(spec: ValueSpec, batch: Tensor) -> tuple[Bytes, npt.NDArray[np.float64]]:
    rows = batch.detach().cpu().resolve_conj().resolve_neg().contiguous()
    scales = np.zeros(len(rows), dtype=np.float64)
    if spec.is_scaled:
        rows, row_scales = _quantised(spec, rows.flatten(1) if rows.ndim > 1 else rows[:, None])
        scales = row_scales.double().numpy()
    elif spec.stored != spec.dtype:
        rounded = rows.to(spec.stored)
        if not torch.equal(rounded.isinf(), rows.isinf()):
            raise _too_large(spec, rows)
        rows = rounded
    return rows.flatten().view(torch.uint8).numpy(), scales


def _quantised(spec: ValueSpec, rows: Tensor) -> tuple[Tensor, Tensor]:
    if rows.numel() == 0:
        return rows.to(torch.int8), torch.zeros(len(rows))
    numbers = rows.float()
    largest = numbers.abs().amax(dim=1)
    if not bool(largest.isfinite().all()):
        raise _too_large(spec, rows)
    scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (numbers / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales


def _too_large(spec: ValueSpec, rows: Tensor) -> StoreError:
    return StoreError(
        f"value '{spec.name}' holds {float(rows.abs().max()):.3g}, which storage "
        f"'{spec.storage}' cannot keep. Use storage 'bfloat16' for large numbers, "
        "or 'same' for infinities and NaN."
    )


def _uniform(
    rows: int, leading: Sequence[int], lengths: Sequence[int] = ()
) -> tuple[Integers, Integers]:
    counts = np.full(rows, math.prod(leading), dtype=np.int64)
    return counts, np.array([lengths] * rows, dtype=np.int64).reshape(rows, len(lengths))


ID_BYTES = 16
_MOST_UNITS: Final = 2.0**48
_MOST_BYTES: Final = 2.0**62

Records: TypeAlias = npt.NDArray[np.void]
Mask: TypeAlias = npt.NDArray[np.bool_]


def record_dtype(values: Sequence[ValueSpec]) -> np.dtype[np.void]:
    """The layout of one record; little-endian, packed."""
    fields: list[Any] = [("id", f"V{ID_BYTES}")]
    for number, value in enumerate(values):
        if value.ragged_count:
            fields += [(f"offset{number}", "<u8"), (f"lengths{number}", "<u8", value.ragged_count)]
        if value.is_scaled:
            fields.append((f"scale{number}", "<f8"))
        fields.append((f"sum{number}", "<u8"))
    # The lengths of one ragged dimension would otherwise be no array of their own.
    fields = [(f[0], f[1], (f[2],)) if len(f) == 3 else f for f in fields]
    return np.dtype([*fields, ("check", "<u8")])


def make_records(
    values: Sequence[ValueSpec],
    row_ids: Sequence[bytes],
    blocks: Sequence[Block],
    *,
    starts: Sequence[int],
    identity: int,
    first: int,
) -> Records:
    """Sealed records `first`, `first + 1`, ... of rows whose units begin at `starts`."""
    records = np.zeros(len(row_ids), dtype=record_dtype(values))
    records["id"] = np.frombuffer(b"".join(row_ids), dtype=f"V{ID_BYTES}")
    for number, (value, block) in enumerate(zip(values, blocks, strict=True)):
        if value.ragged_count:
            records[f"offset{number}"] = starts[number] + np.cumsum(block.counts) - block.counts
            records[f"lengths{number}"] = block.lengths
        if value.is_scaled:
            records[f"scale{number}"] = block.scales
        records[f"sum{number}"] = _sums(block, value.unit_nbytes)
    records["check"] = _checks(records, identity, first)
    return records


@final
@dataclass(frozen=True, slots=True)
class Log:
    """Records `first` ... of a log as they were read.

    Attributes:
        sound: which of them prove themselves.
        void: which are all zeros, and say nothing.
    """

    records: Records
    sound: Mask
    void: Mask


def parse(values: Sequence[ValueSpec], raw: bytes, *, identity: int, first: int = 0) -> Log:
    """Read whole records; a torn one at the end is left out."""
    dtype = record_dtype(values)
    count = len(raw) // dtype.itemsize
    records = np.frombuffer(raw, dtype=dtype, count=count)
    flat = np.frombuffer(raw, dtype=np.uint8, count=count * dtype.itemsize)
    void: Mask = np.logical_not(flat.reshape(count, dtype.itemsize).any(axis=1))
    matches: Mask = np.equal(records["check"], _checks(records, identity, first))
    return Log(records, matches & ~void & _is_possible(values, records), void)


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


def ids(records: Records) -> list[bytes]:
    """The row ids, in order."""
    return list(records["id"].tolist())


def unit_offsets(
    value: ValueSpec, number: int, records: Records, places: Integers
) -> tuple[Integers, Integers]:
    """Where the rows' units begin, and how many there are; `places` are the records' own."""
    if not value.ragged_count:
        return places, np.ones(len(records), dtype=np.int64)
    shapes = leading_shapes(value, number, records)
    return records[f"offset{number}"].astype(np.int64), shapes.prod(axis=1)


def leading_shapes(value: ValueSpec, number: int, records: Records) -> Integers:
    """Each row's own sizes in the dimensions up to the last ragged one."""
    shapes = np.empty((len(records), len(value.leading)), dtype=np.int64)
    ragged = 0
    for at, size in enumerate(value.leading):
        shapes[:, at] = records[f"lengths{number}"][:, ragged] if size is None else size
        ragged += size is None
    return shapes


def unit_totals(values: Sequence[ValueSpec], log: Log) -> list[int]:
    """How many units of each value a log's rows take, from the start of the data file."""
    totals = []
    for number, value in enumerate(values):
        records = log.records[log.sound]
        if not value.ragged_count:
            totals.append(len(log.records))
            continue
        offsets, counts = unit_offsets(value, number, records, np.arange(len(records)))
        totals.append(int((offsets + counts).max(initial=0)))
    return totals


def data_bytes(value: ValueSpec, offsets: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Where rows begin in the value's file, and how many bytes they have."""
    size = value.unit_nbytes
    return HEADER_BYTES + offsets * size, counts * size


def _sums(block: Block, unit_nbytes: int) -> list[int]:
    ends = np.cumsum(block.counts * unit_nbytes).tolist()
    view = block.content.data
    hashed = xxhash.xxh3_64_intdigest
    return [hashed(view[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _checks(records: Records, identity: int, first: int) -> npt.NDArray[np.uint64]:
    size = records.dtype.itemsize
    view = np.ascontiguousarray(records).view(np.uint8).reshape(-1).data
    hashed, mask = xxhash.xxh3_64_intdigest, (1 << 64) - 1
    found = [
        hashed(view[at * size : (at + 1) * size - 8], (identity + first + at) & mask)
        for at in range(len(records))
    ]
    return np.array(found, dtype=np.uint64)
