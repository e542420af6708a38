"""Small data, small networks with a frozen lower part, and both ways to train them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.data import Augment, ImageDataset, read_set
from frostline.features import Computing
from small_world import write_picture

CLASSES = ("dark", "light")
PREPROCESSING = fl.Preprocessing(resize=16, crop=(16, 16))


class Pictures(nn.Module):
    """Convolutions to freeze; batch norm and dropout in what is trained."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.middle = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Dropout(0.3))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.features(x)))


class Words(nn.Module):
    """Token ids through an LSTM, whose kernels are others under `no_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.read = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.read(self.embed(ids))[0][:, -1])


def pictures_net(seed: int = 0) -> Pictures:
    torch.manual_seed(seed)
    model = Pictures()
    model.features[1].running_mean.normal_()  # as if it had been trained
    fl.freeze(model, "features")
    return model


def words_net() -> Words:
    torch.manual_seed(0)
    model = Words()
    fl.freeze(model, "embed | read")
    return model


def word_data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (count, 12), generator=generator)
    return TensorDataset(ids, ids[:, -1] % 3)


def images(root: Path, *, augment: str = "none", crop: int = 16) -> ImageDataset:
    return ImageDataset(
        read_set(root, classes=CLASSES),
        fl.Preprocessing(resize=16, crop=(crop, crop)),
        augment=Augment.parse(augment),
    )


def write_images(root: Path, count: int, *, seed: int = 0) -> Path:
    """`count` pictures of each class."""
    for name, level in zip(CLASSES, (60, 190), strict=True):
        for index in range(count):
            write_picture(root / name / f"{index}.png", level, seed=seed)
    return root


def figures(run: fl.Run) -> list[tuple[object, ...]]:
    """All of each epoch but the times."""
    return [
        (r.lr, *r.train.values(), r.best, tuple(r.validation.headline().values()))
        for r in run.history
    ]


@dataclass(frozen=True)
class Both:
    """A run in the plain loop and one on stored features."""

    plain: fl.Run
    stored: fl.Run

    def assert_equal(self) -> None:
        assert figures(self.stored) == figures(self.plain)
        assert fl.fingerprint(self.stored.model) == fl.fingerprint(self.plain.model)


def both(
    make: Callable[[], nn.Module], train: object, val: object, store: Path, **options: Any
) -> Both:
    """The same exact run, plainly and on features in `store`."""
    wanted: dict[str, Any] = {"epochs": 3, "batch_size": 6, "lr": 0.02, "device": "cpu", **options}
    plain = fl.fit(make(), train, val, precision="exact", features="off", **wanted)
    stored = fl.fit(make(), train, val, precision="exact", features=store, **wanted)
    assert not plain.says
    assert stored.says[0].startswith("Frost  ")
    return Both(plain, stored)


def cut_of(model: nn.Module, data: Any) -> fl.Cut:
    return fl.cut(model, torch.stack([data[i][0] for i in range(4)]))


class Counted:
    """How many rows went through a prefix."""

    def __init__(self, monkeypatch: Any) -> None:
        self.rows = 0
        plain = Computing.rows

        def rows(compute: Computing, samples: Any, collate: Any) -> tuple[Tensor, ...]:
            self.rows += len(samples)
            return plain(compute, samples, collate)

        monkeypatch.setattr(Computing, "rows", rows)

    def taken(self) -> int:
        """Since it was last asked."""
        found, self.rows = self.rows, 0
        return found
