"""What benchmarks/networks.py says of rows, errors and saved bytes, on networks made for it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.backward import saved_bytes
from frostline.models import find_classifier

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("networks")


def found_of(networks: ModuleType, compute: Any) -> set[str]:
    """In what the rows of a function differ."""
    rows = networks.rows(compute, torch.rand(32, 3) + 1, 1)
    return {what for what, difference in rows.items() if difference}


def test_equal_rows_differ_in_nothing(networks: ModuleType) -> None:
    assert found_of(networks, lambda batch: (2 * batch,)) == set()


def test_a_last_bit_by_size_is_told_from_one_by_place_and_one_by_batch_mates(
    networks: ModuleType,
) -> None:
    def by_size(batch: Tensor) -> tuple[Tensor]:
        return (batch * (1 + 1e-6 * (len(batch) < 2)),)

    def by_place(batch: Tensor) -> tuple[Tensor]:
        moved = torch.ones(len(batch), 1)
        moved[8:] += 1e-6
        return (batch * moved,)

    def by_mates(batch: Tensor) -> tuple[Tensor]:
        return (batch + batch.amax(0),)

    assert found_of(networks, by_size) == {"batch of 1"}
    assert found_of(networks, by_place) == {"places of 32"}
    assert found_of(networks, by_mates) == {"among others"}


def test_the_worst_sample_is_told_beside_the_mean(networks: ModuleType) -> None:
    exact = torch.ones(4, 2)
    moved = exact.clone()
    moved[2] *= 1.1
    found = networks.errors([moved], [exact])
    assert found["worst"] == pytest.approx(0.1)
    assert found["mean"] == pytest.approx(0.025)


@pytest.mark.parametrize("what", ["stage:0", "stage:-2..-1"])
def test_saved_bytes_are_those_of_a_real_step(networks: ModuleType, what: str) -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    network = networks.Network(model, find_classifier(model)[0], fl.Preprocessing())
    fl.train_only(model, what)
    images = torch.randn(networks.BATCH, 3, 48, 48)
    found = networks.saved(network, images)
    assert found["lean"] == leaned(model, images) <= found["plain"]
    assert found["plain"] == plain(model, images)


def plain(model: nn.Module, images: Tensor) -> int:
    targets = torch.zeros(len(images), dtype=torch.long)
    besides = [*model.parameters(), *model.buffers(), images]
    model.train()
    return saved_bytes(lambda: nn.functional.cross_entropy(model(images), targets), besides=besides)


def leaned(model: nn.Module, images: Tensor) -> int:
    with fl.lean(model):
        return plain(model, images)


def test_forms_of_random_weights_change_one_thing_each_and_all_at_once(
    networks: ModuleType,
) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        *(nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 2)),
    )
    fl.train_only(model, "6")
    made = fl.cut(model, torch.randn(3, 3, 8, 8))
    every = networks._applicable(made)
    assert len(every) == 3 * 4 - 1
    assert {str(form) for form in networks._few(every)} == {
        *("float32 channels-last", "float32 folded", "bfloat16", "float16"),
        "bfloat16 channels-last folded",
    }
