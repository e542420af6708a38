"""How sure a share is, and whether two runs differ by more than chance on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

_Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
_RESAMPLES = 20_000
_EXACT_UP_TO = 2_000  # samples on which two runs differ; beyond, the normal distribution will do


def share_interval(hits: int, samples: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score, which holds for few samples too."""
    if not samples:
        return 0.0, 1.0
    share, z2 = hits / samples, _Z95**2
    middle = share + z2 / (2 * samples)
    spread = _Z95 * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    low, high = ((middle + sign * spread) / (1 + z2 / samples) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@final
@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on the same samples.

    Attributes:
        samples: that both were judged on.
        gained: that the second has right and the first has not; `lost` the other way round.
        difference: accuracy of the second less that of the first.
        low, high: 95 % interval of the difference, by bootstrap over the samples.
        p_value: McNemar's, exact up to 2,000 differing samples: how often two equally good runs
            would differ by as much.
    """

    samples: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p_value: float


def paired(gained: int, lost: int, samples: int, *, seed: int = 0) -> Paired:
    """Compare two runs by the samples on which one is right and the other wrong."""
    low, high = _bootstrap(gained, lost, samples, seed)
    difference = (gained - lost) / samples
    return Paired(samples, gained, lost, difference, low, high, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value: under equal runs each differing sample falls either way like a coin."""
    count, least = gained + lost, min(gained, lost)
    if not count:
        return 1.0
    if count > _EXACT_UP_TO:  # with the continuity correction
        return math.erfc(max(0, abs(gained - lost) - 1) / math.sqrt(2 * count))
    tail = sum(math.comb(count, k) for k in range(least + 1))
    return min(1.0, float(2 * tail / 2**count))


def _bootstrap(gained: int, lost: int, samples: int, seed: int) -> tuple[float, float]:
    """2.5 % and 97.5 % points of the difference over samples drawn anew.

    How often each kind of sample is drawn is multinomial, so it is drawn at once.
    """
    shares = np.array([gained, lost, samples - gained - lost]) / samples
    drawn = np.random.default_rng(seed).multinomial(samples, shares, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / samples, [0.025, 0.975])
    return float(low), float(high)
