"""Whether probabilities mean what they say: a reliability diagram's bins and their mean gap.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks": 15 bins of equal width over
the probability of the predicted class; the expected calibration error is the mean gap between a
bin's accuracy and its mean probability, each bin weighted by its samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from frostline.records.predictions import Judged

BINS = 15


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


def calibration(judged: Judged, *, bins: int = BINS) -> Calibration:
    """How far confidence and accuracy lie apart."""
    confidence, hits = judged.confidence, judged.hits.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])  # (low, high]
    count, told, right = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values)
        for values in (torch.ones_like(hits), confidence, hits)
    )
    some = count.clamp(min=1)
    means, shares = told / some, right / some
    error = float(((means - shares).abs() * count).sum() / len(judged))
    rows = zip(edges[:-1], edges[1:], count, means, shares, strict=True)
    found = (tuple(part.item() for part in row) for row in rows)
    return Calibration(
        tuple(Bin(low, high, int(n), mean, share) for low, high, n, mean, share in found),
        error,
        float(confidence.mean()),
    )
