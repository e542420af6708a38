"""Tensors to the bytes that are stored, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.errors import StoreError
from frostline.store.keys import ValueSpec

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
    return _joined(pieces)


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
        narrow = rows.to(spec.stored)
        if not torch.equal(narrow.isinf(), rows.isinf()):
            raise _too_large(spec, rows)
        rows = narrow
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


def _joined(blocks: Sequence[Block]) -> Block:
    return Block(
        np.concatenate([block.content for block in blocks]),
        np.concatenate([block.counts for block in blocks]),
        np.concatenate([block.lengths for block in blocks]),
        np.concatenate([block.scales for block in blocks]),
    )
