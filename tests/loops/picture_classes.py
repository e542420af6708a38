"""Small pictures of three classes as arrays, a network for them, and one that takes any rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

import frostline as fl

PREPROCESSING = fl.Preprocessing(resize=16, crop=(16, 16))


class Pictures(nn.Module):
    """Batch norm in the frozen part, dropout in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class AnyWidth(nn.Module):
    """Takes rows of up to 24 numbers, as scikit-learn's checks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, 64), nn.Tanh())
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(pad(x.clamp(-1e4, 1e4), (0, 24 - x.shape[1]))))


def pictures(count: int = 48) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Noise in red, green or blue: `(count, 16, 16, 3)`, and the names of the colours."""
    draw, label = np.random.RandomState(0), np.arange(count) % 3
    noise = draw.randint(0, 120, (count, 16, 16, 3)).astype(np.uint8)
    noise[np.arange(count), :, :, label] += 120
    return noise, np.array(["red", "green", "blue"])[label]


def classifier(features: Any = "off", **options: Any) -> fl.FrozenClassifier:
    torch.manual_seed(0)
    options = {"epochs": 4, "lr": 0.1, "batch_size": 8, "device": "cpu", **options}
    return fl.FrozenClassifier(
        Pictures(), freeze="features", preprocessing=PREPROCESSING, features=features, **options
    )
