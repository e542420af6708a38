"""Threads that train or cut at the same time get what each would get alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.calling import in_turn
from frostline.features import Computing, in_form
from frostline.tuning import Form

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
        losses = [record.train["loss"] for record in run.history]
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
    @in_turn
    def inner(word: str) -> str:
        return word

    assert in_turn(inner)("said") == "said"
    assert in_turn(inner).__name__ == "inner"


@pytest.mark.parametrize("look", [fl.estimate, fl.doctor])
def test_looking_at_a_model_waits_for_the_fit_of_another_thread(
    look: Callable[[nn.Module, Tensor], object],
) -> None:
    """Both put the random numbers of the process back, which the fit draws from."""
    model, runs = nets()[0], threading.Event()
    model.register_forward_pre_hook(lambda *_: runs.set())
    thread = threading.Thread(target=look, args=(model, INPUTS[:4]))

    @in_turn
    def fit() -> bool:
        thread.start()
        return runs.wait(0.3)

    assert not fit()
    thread.join()
    assert runs.is_set()


@pytest.mark.parametrize(("count", "passes"), [(70, [16, 18, 18, 18]), (5, [2, 3]), (1, [1])])
def test_threads_side_by_side_have_as_many_rows_each(
    count: int, passes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, plain = list[int](), Computing.rows

    def noted(self: Computing, samples: Any, collate: Any) -> tuple[Tensor, ...]:
        sizes.append(len(samples))
        return plain(self, samples, collate)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    fl.train_only(model, "2")
    data = TensorDataset(torch.randn(count, 3, 8, 8), torch.zeros(count).long())
    cut = fl.cut(model, torch.randn(4, 3, 8, 8))
    form = Form.parse("float32 channels-last")
    compute = in_form(cut, form, batch_size=32, device=torch.device("cpu"))
    monkeypatch.setattr(Computing, "rows", noted)
    monkeypatch.setattr("frostline.features.filling.count_threads", lambda _: 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert fl.extract(cut, data, tmp_path, compute=compute).computed == count
    finally:
        torch.set_num_threads(before)
    assert sorted(sizes) == passes


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_child_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    has_turn, may_go = threading.Event(), threading.Event()

    @in_turn
    def take() -> None:
        has_turn.set()
        may_go.wait()

    thread = threading.Thread(target=take)
    thread.start()
    has_turn.wait()
    with warnings.catch_warnings(action="ignore"):  # of threads beside a fork
        child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a child that waits for ever
        in_turn(lambda: None)()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    may_go.set()
    thread.join()
    assert status == 0
