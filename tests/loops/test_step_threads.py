"""Steps of a small head run on one thread, with the bits of several; others as they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.engine import loop, threads

pytestmark = pytest.mark.usefixtures("two_threads")


def data(count: int = 50) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 64, generator=draw), torch.arange(count) % 2)


def net(*kinds: str) -> nn.Sequential:
    torch.manual_seed(1)
    made = {
        "linear": lambda: nn.Linear(512, 2),
        "norm": lambda: nn.BatchNorm1d(512),
        "dropout": lambda: nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(0.5)),
        "small": lambda: nn.Linear(32, 2),
    }
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), *(made[kind]() for kind in kinds))
    fl.freeze(model, "0")
    return model


def chosen(model: nn.Module, store: Path, **options: object) -> tuple[int | None, fl.Run, int]:
    """How many threads were chosen, the run, and how many a step had."""
    answers: list[int | None] = []
    seen: list[int] = []

    def noting(*given: object) -> int | None:
        answers.append(threads.step_threads(*given))
        return answers[-1]

    class Seeing(fl.Hook):
        def on_step(self, training: object) -> None:  # noqa: ARG002 - as hooks have it
            seen.append(torch.get_num_threads())

    with mock.patch.object(loop, "step_threads", noting):
        settings: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "precision": "exact"}
        settings |= {"features": store, **options}
        run = fl.fit(model, data(), data(30), hooks=[Seeing()], **settings)
    assert torch.get_num_threads() == 2
    return answers[0], run, seen[0]


def weights(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_a_small_head_steps_on_one_thread_to_the_bits_of_two(tmp_path: Path) -> None:
    one, plain = (net("dropout", "small") for _ in range(2))
    count, run, seen = chosen(one, tmp_path)
    assert (count, seen) == (1, 1)
    count, as_ever, seen = chosen(plain, tmp_path, features="off")
    assert (count, seen) == (None, 2)
    assert all(map(torch.equal, weights(one), weights(plain)))
    assert [r.train for r in run.history] == [r.train for r in as_ever.history]
    assert [r.validation for r in run.history] == [r.validation for r in as_ever.history]


def test_a_trial_leaves_statistics_and_random_numbers_alone(tmp_path: Path) -> None:
    tried, untried = (net("norm", "dropout", "small") for _ in range(2))
    chosen(tried, tmp_path)
    with mock.patch.object(loop, "step_threads", return_value=None):
        fl.fit(untried, data(), data(30), epochs=2, lr=1e-2, features=tmp_path, precision="exact")
    assert all(map(torch.equal, weights(tried), weights(untried)))


def test_where_one_thread_gives_other_bits_all_compute(tmp_path: Path) -> None:
    with mock.patch.object(threads, "same_bits", return_value=False):
        count, _, seen = chosen(net("linear"), tmp_path)
    assert (count, seen) == (None, 2)


def test_a_large_head_is_not_tried(tmp_path: Path) -> None:
    trial = mock.patch.object(threads._Trial, "is_same", side_effect=AssertionError("tried"))
    with trial, mock.patch.object(threads, "_LARGEST", 10_000):
        count, _, seen = chosen(net("linear"), tmp_path)
    assert (count, seen) == (None, 2)


def test_a_loss_of_ones_own_is_not_tried(tmp_path: Path) -> None:
    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(torch.get_num_threads())
        return nn.functional.cross_entropy(outputs, targets)

    count, _, _ = chosen(net("linear"), tmp_path, loss=loss)
    assert count is None
    assert set(calls) == {2}
