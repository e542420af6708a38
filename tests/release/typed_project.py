"""A small project of a user's, as type checkers see it; run, it trains a little.

Each `type: ignore` stands where a checker must complain: under `--strict` an idle one is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.engine import Training
from frostline.lightning import Freeze


class Enough(fl.Hook):
    """Stops a run whose validation is as good as wanted."""

    def on_epoch(self, training: Training) -> None:
        if training.history[-1].validation["accuracy"] >= 0.99:
            training.stop("all but one in a hundred are right")


class Offset(fl.Task):
    """A task of one's own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"error": (outputs[:, 0] - targets).abs().sum()}

    def summarise(self, outputs: Tensor, targets: Tensor) -> fl.Metrics:
        error = float((outputs[:, 0] - targets).abs().mean())
        return fl.Metrics((fl.Metric("error", error, better="lower"),), samples=len(targets))


def network() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(144, 2))


def by_hand(model: nn.Module, images: Tensor, targets: Tensor) -> None:
    frozen = fl.freeze(model, "0", norm="hold")
    assert_type(frozen, fl.Frozen)
    assert_type(fl.select(model, fl.path("0") & ~fl.kind("norm")).names, tuple[str, ...])
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3, lr_mult={"1": 10.0}))
    loss = nn.functional.cross_entropy(model(images), targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    optimizer.step()
    found = fl.doctor(model, images, targets=targets, optimizer=optimizer)
    assert_type(found.ok, bool)
    assert found.ok, found
    print(frozen.verify())


def computed_once(model: nn.Module, data: TensorDataset, images: Tensor, out: Path) -> None:
    cut = fl.cut(model, images)
    assert_type(cut, fl.Cut)
    features = fl.extract(cut, data, out / "features")
    for values, targets in features.loader(batch_size=8, shuffle=True):
        assert len(values) == len(targets) == 8
    assert_type(fl.estimate(model, images, optimizer="adamw", batch_size=8), fl.Estimate)
    fl.save_delta(model, out / "delta.safetensors")
    fl.load_delta(model, out / "delta.safetensors")


def in_phases(model: nn.Module, data: TensorDataset, out: Path) -> None:
    plan = fl.Plan([fl.Phase(train="1", epochs=1, lr=1e-2, until=fl.Until(patience=2))])
    run = fl.fit(model, data, data, plan=plan, out=out / "run", hooks=[Enough()], features="off")
    assert_type(run, fl.Run)
    assert_type(run.best.epoch, int)
    Freeze(plan, module="model")
    session = fl.Session(model, plan, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    session.enter()
    assert_type(session.frozen, fl.Frozen)
    session.close()
    print(fl.fit(model, data, data, task=Offset(), recipe=fl.Recipe(epochs=1), features="off"))


def refused(model: nn.Module, data: TensorDataset, images: Tensor) -> None:
    """Never called: what a checker finds before anything runs."""
    fl.freeze(model, "0", norm=True)  # type: ignore[arg-type]
    fl.cut(model)  # type: ignore[call-arg]
    fl.Phase(trian="1")  # type: ignore[call-arg]
    fl.fit(model, data, data, hooks=[Enough])  # type: ignore[list-item]
    fl.extract(fl.cut(model, images), data)  # type: ignore[call-arg]


def main(out: Path) -> None:
    images, targets = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    data = TensorDataset(images, targets)
    model = network()
    by_hand(model, images, targets)
    computed_once(model, data, images, out)
    in_phases(model, data, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
