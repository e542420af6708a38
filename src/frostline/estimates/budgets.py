"""What fits into a budget of memory: the largest batch, and the deepest thaw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from torch import nn

from frostline.freezing import thaw, train_only
from frostline.selectors import inventory
from frostline.selectors.stages import stages

_LARGEST_BATCH = 1 << 20
_SECOND_BATCH = 16  # beside a batch of one, to see how memory grows


@final
@dataclass(frozen=True, slots=True)
class Depth:
    """Everything up to some stage frozen.

    Attributes:
        frozen, train: selectors of the two parts.
    """

    frozen: str
    train: str


def depths(model: nn.Module) -> Iterator[Depth]:
    """Freeze everything up to each stage in turn, from nothing to all but the last.

    The model is left as in the last one.
    """
    thaw(model, "all")
    yield Depth("none", "all")
    last = len(stages(inventory(model))) - 1
    for first in range(1, last + 1):
        depth = Depth(
            "stage:0" if first == 1 else f"stage:0..{first - 1}",
            "stage:-1" if first == last else f"stage:{first}..-1",
        )
        train_only(model, depth.train)
        yield depth


def largest_batch(total: Callable[[int], int], nbytes: int) -> tuple[int, int]:
    """The largest batch that fits, and what it takes; (0, 0) where none does.

    Args:
        total: bytes that a batch of so many samples takes; grows about evenly.
    """
    known = {1: total(1)}
    if known[1] > nbytes:
        return 0, 0
    fits, beyond, rows = 1, _LARGEST_BATCH, _SECOND_BATCH
    while beyond - fits > 1:
        known[rows] = total(rows)
        if known[rows] <= nbytes:
            fits = rows
        else:
            beyond = rows
        slope = max(1.0, (known[rows] - known[1]) / (rows - 1))
        rows = fits + int((nbytes - known[fits]) / slope)
        rows = min(max(rows, fits + 1), beyond - 1)
    return fits, known[fits]
