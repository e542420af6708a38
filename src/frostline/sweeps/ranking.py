"""Which member is the best, how many go on after an epoch, and which.

Accuracies that the validation samples cannot tell apart are ties, and the lower loss decides: those
members come first that McNemar's test does not tell from the most accurate one, by their losses,
then the others by accuracy. Of a few samples most differences are luck, and of many members the
luckiest is on top; which is why the most accurate one alone is not asked for. Where a metric was
asked for, its value decides, then the loss. What ties in all goes by the order of the members.

Those go on that have the lowest loss now, in one of the last three epochs, not those that had it: a
member that was dropped stands by its best epoch until then, so one whose loss has begun to rise has
no more to win, and one that learns slowly has. Members that are alike so far, as those whose weight
decay is too small to matter, count once: the others go on only where places are left (see
benchmarks/dropping.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from frostline.choices import AUTO_MONITOR
from frostline.records import mcnemar
from frostline.tasks import Metrics

CHANCE = 0.05  # p-value from which on a difference is taken for chance
_WHOLE = 1 / 8  # of the epochs, for which all members are trained
_NOW = 3  # epochs: one alone is noisy where the learning rate is high
_ALIKE = 0.003  # of a loss
_LEAST = 4  # members from which on some are dropped


@final
@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """A member's best epoch so far: its metrics, and which validation samples it had right."""

    metrics: Metrics
    hits: Tensor | None = None

    def p_value(self, other: Standing) -> float | None:
        """How often two equally good members would differ by as much; None where not known."""
        if self.hits is None or other.hits is None:
            return None
        gained, lost = (self.hits & ~other.hits).sum(), (other.hits & ~self.hits).sum()
        return mcnemar(int(gained), int(lost))


def ranked(found: Mapping[int, Standing | None], monitor: str) -> list[int]:
    """Members by number, from the best to the worst; those without a metric last."""
    left = {
        number: one
        for number, one in found.items()
        if one is not None and not math.isnan(one.metrics.metric(monitor).value)
    }
    losses = {n: one.metrics.headline().get("loss", math.inf) for n, one in left.items()}

    def by_metric(number: int) -> tuple[float, float]:
        metric = left[number].metrics.metric(monitor)
        return metric.value * (1 if metric.better == "lower" else -1), losses[number]

    order = sorted(left, key=by_metric)  # stable
    if order and monitor == AUTO_MONITOR and left[order[0]].metrics.has("accuracy"):
        top = left[order[0]]
        near = [n for n in order if (top.p_value(left[n]) or 0.0) >= CHANCE]
        order = sorted(near, key=lambda n: (losses[n], n)) + [n for n in order if n not in near]
    return order + [number for number in found if number not in left]


def leading(histories: Mapping[int, Sequence[Metrics]], monitor: str) -> list[int]:
    """Members by number, in the order in which they go on: by the lowest loss of three epochs.

    These are the last three. Where a metric was asked for, its best value decides. Members whose
    losses are within 0.3 % of those of a better one in every epoch come last.

    Args:
        histories: validation metrics of each epoch, of all members the same epochs.
    """

    def key(number: int) -> tuple[float, float, int]:
        return (*min(_cost(one, monitor) for one in histories[number][-_NOW:]), number)

    order = sorted(histories, key=key)
    losses = {number: [_loss(one) for one in histories[number]] for number in order}
    first: list[int] = []
    for number in order:
        if not any(_alike(losses[number], losses[other]) for other in first):
            first.append(number)
    return first + [number for number in order if number not in first]


def _cost(found: Metrics, monitor: str) -> tuple[float, float]:
    """Lower is better; the loss alone, unless a metric was asked for."""
    loss = _loss(found)
    if monitor == AUTO_MONITOR:
        return loss, loss
    metric = found.metric(monitor)
    value = metric.value * (1 if metric.better == "lower" else -1)
    return (math.inf if math.isnan(value) else value), loss


def _loss(found: Metrics) -> float:
    return found.headline().get("loss", math.inf)


def _alike(losses: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(a - b) <= _ALIKE * b for a, b in zip(losses, others, strict=True))


def rungs(epochs: int, members: int) -> dict[int, int]:
    """Epoch after which members are dropped -> how many then go on.

    Past an eighth of the epochs so many go on that members times epochs done stays the same: half
    of them after a quarter of the epochs, a quarter after half, and an eighth to the end. Of fewer
    than four members none is dropped.

    Example:
        >>> rungs(16, 32)
        {3: 22, 4: 16, 5: 13, 6: 11, 7: 10, 8: 8, 10: 7, 11: 6, 13: 5}
    """
    if members < _LEAST:
        return {}
    found: dict[int, int] = {}
    left = members
    for epoch in range(1, epochs):
        keep = math.ceil(members * _WHOLE * epochs / epoch - 1e-9)
        if keep < left:
            found[epoch] = left = keep
    return found
