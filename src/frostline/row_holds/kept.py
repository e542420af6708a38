"""Copies of some rows of a tensor, and what of the tensor differs from them in any bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from frostline.selectors.ranges import overlaps, union

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Rows of a tensor, and a copy of what they held, which is never written to."""

    rows: range
    values: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor's own rows, as a view."""
        return tensor.detach()[self.rows.start : self.rows.stop]

    def to(self, tensor: Tensor) -> Kept:
        """The copy in the tensor's dtype and on its device."""
        return Kept(self.rows, self.values.to(tensor.device, tensor.dtype))


def taken(tensor: Tensor, rows: Iterable[range]) -> tuple[Kept, ...]:
    """Copies of these rows as they are now."""
    return tuple(Kept(r, tensor.detach()[r.start : r.stop].clone()) for r in rows)


def kept_within(kept: Sequence[Kept], rows: Iterable[range]) -> tuple[Kept, ...]:
    """What of the kept rows is among `rows`; a piece that is cut is copied, to free the rest."""
    pieces = overlaps([piece.rows for piece in kept], union(rows))
    return tuple(
        kept[at] if part == kept[at].rows else Kept(part, _part(kept[at], part).clone())
        for at, part in pieces
    )


def are_same(kept: Iterable[Kept], tensor: Tensor) -> bool:
    """Whether the tensor has the kept rows, and each of their bits."""
    pairs = [(piece.of(tensor), piece.values) for piece in kept]
    if any(now.shape != before.shape for now, before in pairs):
        return False
    if tensor.device.type == "cpu":
        return all(torch.equal(_bits(now), _bits(before)) for now, before in pairs)
    return not any_differs(pairs)


def any_differs(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether any bit differs, for an accelerator: it is waited for once, not for each pair."""
    differs = [(_bits(now) != _bits(before)).any() for now, before in pairs]
    return bool(torch.stack(differs).any())


def difference(piece: Kept, tensor: Tensor) -> str | None:
    """How the tensor's rows differ from the kept ones, in words; `None` where no bit does."""
    now = piece.of(tensor)
    if now.shape != piece.values.shape:
        return f"shape changed from {(*piece.values.shape,)} to {(*now.shape,)}"
    differs = (_bits(now) != _bits(piece.values)).reshape(len(piece.rows), -1).any(dim=1)
    if not differs.any():
        return None
    count, first = int(differs.sum()), piece.rows[int(differs.int().argmax())]
    return f"{count} of {len(piece.rows)} rows differ, the first is row {first}"


def _part(piece: Kept, rows: range) -> Tensor:
    return piece.values[rows.start - piece.rows.start : rows.stop - piece.rows.start]


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, so that NaN equals itself and the sign of zero counts."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(_BITS[real.dtype.itemsize])
