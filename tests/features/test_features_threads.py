"""Threads that train or cut at the same time get what each would get alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl

INPUTS = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(INPUTS, torch.arange(24) % 3)


class Net(nn.Module):
    """What is trained draws random numbers in each step."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 16))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


def nets() -> list[nn.Module]:
    made: list[nn.Module] = [Net(seed) for seed in range(2)]
    for model in made:
        fl.freeze(model, "backbone")
    return made


def in_threads(work: Callable[[int], object]) -> dict[int, object]:
    found: dict[int, object] = {}

    def one(number: int) -> None:
        try:
            found[number] = work(number)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_fits_in_threads_end_at_the_bits_of_each_alone(tmp_path: Path) -> None:
    def fit(models: list[nn.Module], number: int, store: Path) -> tuple[object, ...]:
        options = {"epochs": 2, "batch_size": 4, "lr": 0.01, "precision": "exact", "seed": number}
        run = fl.fit(models[number], DATA, DATA, features=store, device="cpu", **options)
        losses = [record.train_loss for record in run.history]
        return fl.fingerprint(run.model), losses, run.computed

    models = nets()
    alone = {number: fit(models, number, tmp_path / f"alone {number}") for number in range(2)}
    models = nets()
    assert in_threads(lambda number: fit(models, number, tmp_path / f"{number}")) == alone
    assert alone[0][2] == len(DATA)


def test_cuts_in_threads_are_those_of_each_alone() -> None:
    models = nets()
    alone = {number: fl.cut(model, INPUTS[:4]).key for number, model in enumerate(models)}
    models = nets()
    assert in_threads(lambda number: fl.cut(models[number], INPUTS[:4]).key) == alone


def test_who_has_the_turn_may_take_it_again() -> None:
    from frostline.turns import in_turn

    @in_turn
    def inner(word: str) -> str:
        return word

    assert in_turn(inner)("said") == "said"
    assert in_turn(inner).__name__ == "inner"
