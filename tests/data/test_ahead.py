"""Samples that are loaded in the background are those that are asked for, each once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.choices import DecodingName
from frostline.data import ImageDataset, ImageSamples, read_splits
from frostline.data.ahead import Ahead
from frostline.preprocessing import Preprocessing
from small_world import write_pictures


class Loads:
    """Loads rows, and notes which."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, row: int) -> Tensor:
        self.rows.append(row)
        if row == 3:
            raise ValueError("broken")
        return torch.full((4,), float(row))


def test_each_row_is_handed_out_once_and_a_broken_one_not_at_all() -> None:
    loads = Loads()
    ahead = Ahead(loads, range(6))
    ahead._pool.shutdown(wait=True)
    found = [ahead.take(row) for row in range(8)]
    assert [None if one is None else int(one[0]) for one in found] == [
        0,
        1,
        2,
        None,
        4,
        5,
        None,
        None,
    ]
    assert ahead.take(1) is None
    assert loads.rows == list(range(6))


def test_no_more_is_loaded_than_there_is_room_for() -> None:
    loads = Loads()
    with mock.patch("frostline.data.ahead._MOST_BYTES", 40):
        ahead = Ahead(loads, [0, 1, 2, 4, 5, 6])
        ahead._pool.shutdown(wait=True)
    assert loads.rows == [0, 1, 2]
    assert ahead.take(6) is None


def test_what_comes_after_waits_for_the_first_and_shares_its_memory() -> None:
    order: list[int] = []

    def load(row: int) -> Tensor:
        order.append(row)
        return torch.zeros(4)

    with (
        mock.patch("frostline.data.ahead._MOST_BYTES", 16 * 5),
        mock.patch("frostline.data.ahead.count_threads", return_value=4),
    ):
        first = Ahead(load, range(4))
        second = Ahead(load, range(10, 14), after=first)
        second._pool.shutdown(wait=True)
    assert sorted(order[:4]) == [0, 1, 2, 3]
    assert {10, 11} <= {*order[4:]} < {10, 11, 12, 13, *order}
    third = Ahead(load, range(20, 22), after=Ahead(load, ()))
    third._pool.shutdown(wait=True)
    assert third.take(21) is not None


def test_an_end_of_the_first_lets_the_second_begin() -> None:
    loads = Loads()
    with mock.patch("frostline.data.ahead.count_threads", return_value=2):
        first = Ahead(lambda row: torch.zeros(1 + 0 * row), range(1000))
        second = Ahead(loads, [1], after=first)
        first.end()
        second._pool.shutdown(wait=True)
    assert loads.rows == [1]


def test_nothing_is_loaded_once_it_has_ended() -> None:
    going, begun = threading.Event(), threading.Event()
    rows: list[int] = []

    def load(row: int) -> Tensor:
        rows.append(row)
        begun.set()
        going.wait(10)
        return torch.zeros(1)

    with mock.patch("frostline.data.ahead.count_threads", return_value=2):
        ahead = Ahead(load, range(100))
    assert begun.wait(10)
    threading.Timer(0.05, going.set).start()
    ahead.end()
    count = len(rows)
    ahead._pool.shutdown(wait=True)
    assert len(rows) == count < 100
    assert ahead.take(99) is None


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[ImageDataset, ImageDataset]:
    splits = read_splits(write_pictures(tmp_path / "photos"))
    look = Preprocessing(resize=16, crop=(16, 16))
    return ImageDataset(splits.train, look), ImageDataset(splits.val, look)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    fl.train_only(model, "3")
    return model


def test_a_run_that_follows_its_model_decodes_meanwhile_to_the_same_bits(
    pictures: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    begun: list[int] = []

    def begin(self: ImageSamples, decoding: DecodingName, **after: Any) -> None:
        begun.append(len(self))
        begin_for_real(self, decoding, **after)

    begin_for_real = ImageSamples.begin
    models, options = [net(), net()], {"epochs": 2, "lr": 1e-2, "precision": "exact"}
    with mock.patch.object(ImageSamples, "begin", begin):
        for cores, model in enumerate(models, 1):
            with mock.patch("frostline.session.pipelines.count_threads", return_value=cores):
                fl.fit(model, *pictures, features=tmp_path / str(cores), **options)
        assert begun == [16, 8]  # where there is more than one core
        fl.fit(models[1], *pictures, features=tmp_path / "2", **options)
    assert begun == [16, 8]  # and where the model is new
    assert torch.equal(models[0][3].weight, net()[3].weight) is False
    stored = [sorted((tmp_path / str(c)).rglob("value*.npy")) for c in (1, 2)]
    assert [file.read_bytes() for file in stored[0]] == [file.read_bytes() for file in stored[1]]
    assert stored[0]
