"""Features behind a named submodule are those of the forward that the model has now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.features import FeatureData

INPUTS = torch.randn(10, 8, generator=torch.Generator().manual_seed(3))
DATA = TensorDataset(INPUTS, torch.arange(10) % 3)


class Net(nn.Module):
    """What its attributes say happens below `backbone`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)
        self.scale = 1.0
        self.register_buffer("mean", torch.zeros(()))

    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone((x - self.mean) * self.scale))
        return out


def edited() -> type[Net]:
    """The same class after its forward was edited."""

    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.backbone((x - self.mean).abs()))
            return out

    Other.__qualname__ = Net.__qualname__
    Other.__name__ = Net.__name__
    return Other


def extract(model: nn.Module, store: Path) -> FeatureData:
    fl.freeze(model, "backbone")
    made = fl.cut(model, INPUTS, at="backbone")
    found = fl.extract(made, DATA, fl.FeatureStore(store), precision="exact")
    assert torch.equal(found.rows.gather(torch.arange(10))[0], made.prefix(INPUTS)[0])
    return found


def with_tanh() -> nn.Module:
    model = Net()
    model.backbone[1] = nn.Tanh()
    return model


def with_mean() -> nn.Module:
    model = Net()
    model.mean += 5
    return model


def with_scale() -> nn.Module:
    model = Net()
    model.scale = 2.0
    return model


@pytest.mark.parametrize(
    "make",
    [with_tanh, with_mean, with_scale, lambda: edited()()],
    ids=["module", "buffer of the root", "attribute", "code"],
)
def test_another_forward_below_the_line_is_computed_anew(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    assert extract(Net(), tmp_path).computed == 10
    assert extract(Net(), tmp_path).computed == 0
    assert extract(make(), tmp_path).computed == 10
    assert extract(make(), tmp_path).computed == 0


def test_a_trained_head_costs_nothing(tmp_path: Path) -> None:
    extract(Net(), tmp_path)
    model = Net()
    with torch.no_grad():
        model.head.weight += 1
    assert extract(model, tmp_path).computed == 0
