"""What a ranking by probability is worth: average precision, and the threshold of the best F1."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Precision at each distinct score, weighed by what recall grows there; NaN without positives.

    Args:
        scores: `(samples,)`, higher for what rather holds.
        truth: bool `(samples,)`.

    Source: the definition of scikit-learn's `average_precision_score`, without interpolation.
    """
    positives = int(truth.sum())
    if not positives:
        return math.nan
    _, hits, taken = _at_each_score(scores, truth)
    precision = hits.double() / taken
    gained = torch.diff(hits.double(), prepend=hits.new_zeros(1).double())
    return float((precision * gained).sum() / positives)


def best_threshold(scores: Tensor, truth: Tensor) -> float:
    """The probability from which on to say yes for the highest F1; 0.5 without positives.

    Half-way between the lowest score that is taken and the next below it; of several with the same
    F1 the highest.
    """
    if not truth.any():
        return 0.5
    values, hits, taken = _at_each_score(scores, truth)
    best = int((2 * hits / (taken + truth.sum())).argmax())
    below = values[best + 1] if best + 1 < len(values) else values.new_zeros(())
    return float((values[best] + below) / 2)


def _at_each_score(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores, highest first, and how many from there on up are right, and are taken."""
    ranked, order = scores.sort(descending=True, stable=True)
    last = torch.ones_like(truth)
    last[:-1] = ranked[1:] != ranked[:-1]  # of those with the same score
    ends = last.nonzero()[:, 0]
    return ranked[ends], truth[order].cumsum(0)[ends], ends + 1
