"""How far outputs are from those of plain float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Distance:
    """Squared L2 norms of each output.

    Attributes:
        differences: of output minus reference; 0 for outputs that are no floats.
        references: of the reference.
    """

    differences: tuple[float, ...]
    references: tuple[float, ...]

    @property
    def error(self) -> float:
        """The relative L2 error of the worst output; infinite where only the reference is 0."""
        pairs = zip(self.differences, self.references, strict=True)
        return max((_relative(a, b) for a, b in pairs), default=0.0)


def distance(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> Distance:
    """Compare the outputs of a form with those of plain float32.

    Raises:
        ValueError: they cannot stand for each other: another number, shape or dtype, integers that
            differ, or NaN or infinity in other places. Says which.
    """
    if len(outputs) != len(reference):
        raise ValueError(f"{len(outputs)} outputs instead of {len(reference)}")
    squares = [_squares(*pair) for pair in zip(outputs, reference, strict=True)]
    return Distance(tuple(a for a, _ in squares), tuple(b for _, b in squares))


def _squares(output: Tensor, reference: Tensor) -> tuple[float, float]:
    if (output.shape, output.dtype) != (reference.shape, reference.dtype):
        raise ValueError(
            f"gives {output.dtype} {tuple(output.shape)} instead of "
            f"{reference.dtype} {tuple(reference.shape)}"
        )
    if not (reference.is_floating_point() or reference.is_complex()):
        if not torch.equal(output, reference):
            raise ValueError("integers differ from those of plain float32")
        return 0.0, 0.0
    norms = _norm(output - reference), _norm(reference)
    if not all(map(math.isfinite, norms)):
        norms = _norms_of_finite(output, reference)
    return norms[0] ** 2, norms[1] ** 2


def _norms_of_finite(output: Tensor, reference: Tensor) -> tuple[float, float]:
    finite = reference.isfinite()
    same = (output == reference) | (output.isnan() & reference.isnan())
    if not bool((finite & output.isfinite() | ~finite & same).all()):
        raise ValueError("NaN or infinity where plain float32 has none")
    return _norm((output - reference)[finite]), _norm(reference[finite])


def _norm(tensor: Tensor) -> float:
    # Sums in float64 without a float64 copy of the features.
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(tensor, dtype=wide)) if tensor.numel() else 0.0


def _relative(difference: float, reference: float) -> float:
    if difference == 0:
        return 0.0
    return math.sqrt(difference / reference) if reference else math.inf
