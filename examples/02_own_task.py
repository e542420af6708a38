"""Teach a network something other than classes: a task of your own, here an angle in degrees.

python examples/02_own_task.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl


class Regression(fl.Task):
    """One number for each sample, by the mean absolute error."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"mean_error": (outputs[:, 0] - targets).abs().sum()}

    def summarise(self, outputs: Tensor, targets: Tensor) -> fl.Metrics:
        errors = (outputs[:, 0] - targets).abs()
        found = (
            fl.Metric("mean_error", float(errors.mean()), better="lower"),
            fl.Metric("within_5_degrees", float((errors < 5).double().mean()), better="higher"),
        )
        return fl.Metrics(found, samples=len(targets))


def bars(count: int, seed: int) -> TensorDataset:
    """Noisy pictures of a bar, and how many degrees it is turned."""
    draw = torch.Generator().manual_seed(seed)
    degrees = 20 + 50 * torch.rand(count, generator=draw)
    radians = degrees[:, None, None] * math.pi / 180
    across = torch.linspace(-1, 1, 16)
    distance = across[None, None, :] * radians.sin() - across[None, :, None] * radians.cos()
    pictures = (-8 * distance**2).exp()
    noise = 0.1 * torch.randn(pictures.shape, generator=draw)
    return TensorDataset((pictures + noise)[:, None], degrees)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten()),
        nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)),
    )


def main() -> None:
    model = network()
    fl.freeze(model, "0")
    run = fl.fit(model, bars(600, 0), bars(200, 1), task=Regression(), epochs=20, lr=3e-3)
    for record in run.history[::5]:
        print(f"epoch {record.epoch}: {record.validation.line()}")
    print(f"best epoch {run.best.epoch}: {run.best.validation.line()}")
    print(run.proof)


if __name__ == "__main__":
    main()
