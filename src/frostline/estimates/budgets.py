"""What fits into a budget of memory: the largest batch, and the deepest thaw."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.estimates.steps import Setup
from frostline.freezing import thaw, train_only
from frostline.selectors import inventory
from frostline.selectors.stages import stages

_LARGEST_BATCH = 1 << 20


def frozen_below(model: nn.Module) -> Iterator[str]:
    """Freeze everything up to each stage in turn, from nothing to all but the head.

    Gives what is frozen, for people; the model is left as in the last one.
    """
    thaw(model, "all")
    yield "nothing"
    for last in range(len(stages(inventory(model))) - 1):
        train_only(model, _above(last))
        yield "stage:0" if last == 0 else f"stage:0..{last}"


def _above(last: int) -> str:
    return f"stage:{last + 1}..-1"


def largest_batch(setup: Setup, nbytes: int) -> tuple[int, int]:
    """The largest batch whose step fits, and what it takes; (0, 0) where none does."""

    def total(rows: int) -> int:
        return setup.memory(setup.trace(rows)).total

    fits, known = 0, 0
    rows = 1
    while rows <= _LARGEST_BATCH and (needed := total(rows)) <= nbytes:
        fits, known = rows, needed
        rows *= 2
    beyond = rows
    while beyond - fits > 1 and fits:
        middle = (fits + beyond) // 2
        needed = total(middle)
        if needed <= nbytes:
            fits, known = middle, needed
        else:
            beyond = middle
    return fits, known


def deepest_thaw(setup: Setup, nbytes: int, batch_size: int) -> tuple[str | None, int]:
    """Selector of the most stages, from the head down, whose training fits, and what it takes."""
    found: tuple[str | None, int] = (None, 0)
    for first in reversed(range(len(stages(inventory(setup.model))))):
        selector = "all" if first == 0 else _shortest(first, setup.model)
        train_only(setup.model, selector)
        needed = setup.memory(setup.trace(batch_size)).total
        if needed > nbytes:
            break
        found = selector, needed
    return found


def _shortest(first: int, model: nn.Module) -> str:
    return "stage:-1" if first == len(stages(inventory(model))) - 1 else f"stage:{first}..-1"
