"""Which member is the best, and how many go on at each rung.

Accuracies that the validation samples cannot tell apart are ties, and the lower loss decides: those
members come first that McNemar's test does not tell from the most accurate one, by their losses,
then the others by accuracy. Of a few samples most differences are luck, and of many members the
luckiest is on top; which is why the most accurate one alone is not asked for. Where a metric was
asked for, its value decides, then the loss. What ties in all goes by the order of the members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from frostline.choices import AUTO_MONITOR
from frostline.records import mcnemar
from frostline.tasks import Metrics

CHANCE = 0.05  # p-value from which on a difference is taken for chance
# After which share of the epochs which share of the members goes on. Of halvings tried on heads of
# hymenoptera and SST-2, the one that kept the winner most often at a third of the work.
_RUNGS = ((0.2, 0.25), (0.4, 0.5))
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


def rungs(epochs: int, members: int) -> dict[int, int]:
    """Epoch after which members are dropped -> how many then go on.

    After a fifth of the epochs a quarter of them, and after two fifths half of these; of fewer than
    four members none is dropped.

    Example:
        >>> rungs(25, 32)
        {5: 8, 10: 4}
    """
    found: dict[int, int] = {}
    left = members
    for part, share in _RUNGS:
        at = math.ceil(epochs * part - 1e-9)
        if left >= _LEAST and at < epochs and at not in found:
            found[at] = left = math.ceil(left * share)
    return found
