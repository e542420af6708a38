"""Runs of small networks that one process makes, or several together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl

PLAN = fl.Plan(
    [
        fl.Phase(train="head", epochs=2, lr=1e-2),
        fl.Phase(train="head | top", epochs=2, lr=3e-3, start="best"),
        fl.Phase(train="head", steps=3, lr=1e-3),
    ]
)


class Net(nn.Module):
    """A frozen stem, a top with batch norm and a head.

    No bias in front of the norm: its gradient is 0 but for rounding, which Adam turns into steps.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.top = nn.Sequential(
            nn.Conv2d(8, 12, 3, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.top(self.stem(x)))
        return found


def net(dropout: float = 0.0) -> Net:
    torch.manual_seed(0)
    return Net(dropout)


def pictures(count: int, seed: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    images = torch.randn(count, 3, 10, 10, generator=draw) + 0.3 * labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


@dataclass(frozen=True)
class Fitted:
    """What a run gave, as plain data."""

    losses: list[float]
    metrics: list[dict[str, float]]
    tensors: dict[str, Tensor]
    frozen: list[str]
    ended: list[str]
    folder: str
    best: dict[str, float]


def fitted(run: fl.Run) -> Fitted:
    return Fitted(
        [record.train["loss"] for record in run.history],
        [dict(record.validation.headline()) for record in run.history],
        {name: tensor.clone() for name, tensor in run.model.state_dict().items()},
        [str(run.proof.fingerprint), *(str(phase.frozen.fingerprint) for phase in run.phases)],
        [phase.ended for phase in run.phases],
        str(run.folder.root) if run.folder else "",
        dict(run.best.validation.headline()),
    )


def fit_net(
    train: str | None = None,
    *,
    count: int = 37,
    out: Path | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> Fitted:
    """Pictures in batches of 8, of which the last has 5."""
    model = net(dropout)
    if train is not None:
        fl.train_only(model, train)
    if "plan" not in options:
        options = {"epochs": 3, "lr": 1e-2, **options}
    made = fl.fit(
        model,
        pictures(count, 1),
        pictures(19, 2),
        out=out,
        **{"batch_size": 8, "device": "cpu", "features": "off", **options},
    )
    return fitted(made)
