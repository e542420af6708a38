"""All stages' pooled features in one forward, as a model that has its frost line behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.cutting import Cut, cut
from frostline.errors import CutError, NothingFrozen
from frostline.probing.taps import Tap

_CHUNK = 4096  # rows that become matrices at a time


@final
class Taps(nn.Module):
    """The pooled features of each stage, each `(batch, width)`, from one forward of a model."""

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(taps)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}
        with ExitStack() as watched:
            for tap in self.taps:
                watched.enter_context(tap.watching(self.model, found))
            self.model(*inputs, **named)
        mask = named.get("attention_mask")
        return tuple(tap.pooled(found[tap.stage], mask) for tap in self.taps)


@final
class Readout(nn.Module):
    """`Taps` of a frozen model, each vector times a trainable number, which is 1.

    So the line of its cut runs behind the vectors, wherever that is cheapest, and the suffix gives
    them bit for bit.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.frozen = Taps(model, taps)
        device = next(model.parameters()).device
        self.gains = nn.Parameter(torch.ones(len(taps), device=device))

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        vectors = self.frozen(*inputs, **named)
        return tuple(vector * self.gains[place] for place, vector in enumerate(vectors))


def cut_behind(readout: Readout, example: Any) -> Cut:
    """The cut behind the vectors, by the graph, or at the module for models without one.

    Raises:
        CutError: the model cannot be cut in either way.
    """
    try:
        return cut(readout, example)
    except NothingFrozen:
        raise
    except CutError as error:
        with suppress(CutError):
            return cut(readout, example, at="frozen")
        raise error


def matrices(
    made: Cut, gather: Callable[[Tensor], tuple[Tensor, ...]], rows: int, device: torch.device
) -> list[Tensor]:
    """The vectors of each stage as a matrix `(rows, width)`, float32, on the CPU.

    Args:
        gather: gives what crosses the line at some rows.
    """
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for first in range(0, rows, _CHUNK):
            places = torch.arange(first, min(first + _CHUNK, rows))
            values = (value.to(device) for value in gather(places))
            parts.append(tuple(vector.float().cpu() for vector in made.suffix(*values)))
    return [torch.cat(each) for each in zip(*parts, strict=True)]
