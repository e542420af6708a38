"""Who else computes: one process, or several that share the samples of a run.

Whatever depends on that asks a `World`: which samples are this one's, sums over all, who writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor


class World(Protocol):
    """The processes that train one model together, as one of them sees them.

    Example:
        >>> from frostline.world import ALONE
        >>> ALONE.rank, ALONE.size, ALONE.writes
        (0, 1, True)
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    @property
    def writes(self) -> bool:
        """Whether this process writes what there is once: the run folder and its journal."""
        ...

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over all processes, which all call it with the same shape."""
        ...


@final
@dataclass(frozen=True, slots=True)
class OneProcess:
    """Nobody else; costs nothing."""

    rank: int = 0
    size: int = 1
    writes: bool = True

    def barrier(self) -> None:
        """Nobody to wait for."""

    def sum(self, values: Tensor) -> Tensor:
        return values


ALONE: World = OneProcess()


def gathered(world: World, own: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; each may have another number.

    By a sum, which every world has: beside a row stand zeros, so it keeps its value.
    """
    if world.size == 1:
        return own
    counts = torch.zeros(world.size, dtype=torch.long, device=own.device)
    counts[world.rank] = len(own)
    ends = world.sum(counts).cumsum(0).tolist()
    rows = torch.zeros(ends[-1], *own.shape[1:], dtype=own.dtype, device=own.device)
    rows[ends[world.rank] - len(own) : ends[world.rank]] = own
    return world.sum(rows)


def gathered_names(world: World, own: Sequence[str]) -> tuple[str, ...]:
    """The same of texts without a zero character, as names of samples are."""
    if world.size == 1:
        return tuple(own)
    text = "".join(f"{name}\0" for name in own).encode(errors="surrogateescape")
    every = bytes(gathered(world, torch.tensor(list(text), dtype=torch.uint8)).tolist())
    return tuple(every.decode(errors="surrogateescape").split("\0")[:-1])
