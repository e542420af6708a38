"""How sure metrics are: intervals, runs compared by chance, and what probabilities are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from frostline.records.predictions import Judged

_Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
_R2_RESAMPLES = 1_000
_EXACT_UP_TO = 2_000  # samples on which two runs differ; beyond, the normal distribution will do
_BINS = 15  # of a reliability diagram


def share_interval(hits: int, samples: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score, which holds for few samples too."""
    if not samples:
        return 0.0, 1.0
    share, z2 = hits / samples, _Z95**2
    middle = share + z2 / (2 * samples)
    spread = _Z95 * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    low, high = ((middle + sign * spread) / (1 + z2 / samples) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def accuracy_interval(metrics: Mapping[str, float], samples: int) -> tuple[float, float] | None:
    """95 % interval of the accuracy among `metrics`; None where there is none."""
    if not math.isfinite(metrics.get("accuracy", math.nan)) or not samples:
        return None
    return share_interval(round(metrics["accuracy"] * samples), samples)


def r2_interval(
    true: npt.NDArray[np.float64], told: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """R2 and its 95 % interval, by bootstrap over the samples; of several targets their mean.

    Args:
        true, told: `(samples, targets)`.
    """
    varies = (true != true[:1]).any(axis=0)  # of others R2 has no meaning
    true, told = true[:, varies], told[:, varies]
    squares, own = (true - told) ** 2, true - true.mean(axis=0)
    squared = own**2
    draw, found = np.random.default_rng(0), []
    shares = np.full(len(true), 1 / len(true))
    for _ in range(_R2_RESAMPLES):
        often = draw.multinomial(len(true), shares)
        total = often @ squared
        spread = total - (often @ own) ** 2 / len(true)
        if (spread > 1e-9 * total).all():  # not where equal samples alone were drawn
            found.append(float(np.mean(1 - often @ squares / spread)))
    middle = float(np.mean(1 - squares.sum(axis=0) / squared.sum(axis=0)))
    low, high = np.quantile(found or [middle], [0.025, 0.975]).tolist()
    return middle, min(low, middle), max(high, middle)


@final
@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on the same samples.

    Attributes:
        samples: that both were judged on.
        gained: that the second has right and the first has not; `lost` the other way round.
        difference: accuracy of the second less that of the first.
        low, high: 95 % interval of the difference.
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


def paired(gained: int, lost: int, samples: int) -> Paired:
    """Compare two runs by the samples on which one is right and the other wrong.

    Source: Agresti and Min (2005), whose interval counts half a sample more of each of four kinds:
    it holds for few samples too, and where none differ.
    """
    difference = (gained - lost) / samples
    won, fell, count = gained + 0.5, lost + 0.5, samples + 2
    middle = (won - fell) / count
    room = 1.96 * math.sqrt((won + fell) - (won - fell) ** 2 / count) / count
    low, high = max(-1.0, middle - room), min(1.0, middle + room)
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


@final
@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose predicted class has a probability above `low` and up to `high`.

    `confidence` is their mean probability and `accuracy` the share that was right; 0 if none.
    """

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


@final
@dataclass(frozen=True, slots=True)
class Calibration:
    """All bins, and their mean gap; `mean_confidence` is over all samples."""

    bins: tuple[Bin, ...]
    expected_error: float
    mean_confidence: float


def calibration(judged: Judged) -> Calibration:
    """Whether probabilities mean what they say: how far confidence and accuracy lie apart.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks": 15 bins of equal width
    over the probability of the predicted class; the expected calibration error is the mean gap
    between a bin's accuracy and its mean probability, each bin weighted by its samples.
    """
    confidence, hits = judged.confidence, judged.hits.double()
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])  # (low, high]
    count, sure, right = (
        torch.zeros(_BINS, dtype=torch.float64).index_add_(0, place, values)
        for values in (torch.ones_like(hits), confidence, hits)
    )
    some = count.clamp(min=1)
    means, shares = sure / some, right / some
    error = float(((means - shares).abs() * count).sum() / len(judged))
    parts = (edges[:-1], edges[1:], count.int(), means, shares)
    found = tuple(Bin(*row) for row in zip(*(part.tolist() for part in parts), strict=True))
    return Calibration(found, error, float(confidence.mean()))
