"""A regularised linear probe: ridge regression, its penalty chosen by leaving each sample out.

Of classes it learns 1 for the right one and 0 for the others, and takes the largest. All penalties
come from one eigendecomposition, and what a sample would be told by the probe of all others has a
closed form, so nothing is iterated and nothing drawn: the same features give the same probe.

Source: Hoerl and Kennard (1970); the closed form is Allen's PRESS (1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_PENALTIES = tuple(10.0**power for power in range(-4, 5))  # in mean squares of a feature
_MOST_SAMPLES = 10_000  # that a probe is fitted on


@final
@dataclass(frozen=True, slots=True)
class LinearProbe:
    """`(features - mean) / scale @ weight + bias`.

    Attributes:
        penalty: that leaving each sample out chose, in mean squares of a feature.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        """Answers `(samples, targets)` to features `(samples, width)`, in float64."""
        return (features.double() - self.mean) / self.scale @ self.weight + self.bias


def fit_probe(features: Tensor, targets: Tensor) -> LinearProbe:
    """The probe of features `(samples, width)` for targets `(samples, answers)`.

    Of more than 10,000 samples as many, taken evenly.
    """
    if len(features) > _MOST_SAMPLES:
        places = torch.linspace(0, len(features) - 1, _MOST_SAMPLES).long()
        features, targets = features[places], targets[places]
    given, wanted = features.double(), targets.double()
    mean, bias = given.mean(dim=0), wanted.mean(dim=0)
    centred = given - mean
    scale = centred.square().mean(dim=0).sqrt()
    scale[scale <= 1e-12 * scale.max().clamp(min=1e-300)] = 1.0  # of one value for all samples
    inputs, wanted = centred / scale, wanted - bias
    by_sample = len(inputs) <= inputs.shape[1]
    square = inputs @ inputs.T if by_sample else inputs.T @ inputs
    sizes, turned = torch.linalg.eigh(square)
    sizes = sizes.clamp(min=0.0)
    # Coordinates of the samples along the eigenvectors, as columns of length 1.
    lengths = sizes.sqrt().clamp(min=1e-150)
    along = turned if by_sample else inputs @ turned / lengths
    along = along * (sizes > sizes.max() * 1e-12)
    shares = along.T @ wanted
    # As the mean of squares, over samples, of one feature, which is 1.
    penalties = [power * len(inputs) for power in _PENALTIES]
    errors = [_left_out_error(along, sizes, shares, wanted, p) for p in penalties]
    best = min(range(len(errors)), key=lambda place: (errors[place], -place))
    shrunk = shares / (sizes + penalties[best]).unsqueeze(1)
    weight = inputs.T @ (along @ shrunk) if by_sample else turned @ (shrunk * lengths.unsqueeze(1))
    return LinearProbe(mean, scale, weight, bias, _PENALTIES[best])


def _left_out_error(
    along: Tensor, sizes: Tensor, shares: Tensor, wanted: Tensor, penalty: float
) -> float:
    """Mean squared error for each sample by the probe of all others."""
    kept = sizes / (sizes + penalty)
    fitted = along @ (shares * kept.unsqueeze(1))
    own = along.square() @ kept + 1 / len(along)  # the bias learns from the sample too
    residual = (wanted - fitted) / (1 - own).clamp(min=1e-9).unsqueeze(1)
    return float(residual.square().mean())
