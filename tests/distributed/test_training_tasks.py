"""Losses that are no mean over samples: of pixels, tokens and weights, and of whole batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import Fitted, fitted, pictures
from ranks import on_ranks
from test_training import assert_alike
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import frostline as fl

COMMON: dict[str, Any] = {
    "epochs": 2,
    "lr": 1e-2,
    "batch_size": 8,
    "device": "cpu",
    "features": "off",
}


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.stem(x).relu())
        return found


def masks(count: int, seed: int) -> TensorDataset:
    """Of which each ignores another share, and some all."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 6, 6, generator=draw)
    classes = images.argmax(dim=1)
    share = torch.arange(count).view(-1, 1, 1) % 5 / 4
    classes[torch.rand(count, 6, 6, generator=draw) < share] = 255
    return TensorDataset(images, classes)


def fit_masks(loss: Any) -> Fitted:
    torch.manual_seed(0)
    model = Pixels()
    fl.train_only(model, "head")
    task = fl.Segmentation(3, loss=loss)
    return fitted(fl.fit(model, masks(19, 1), masks(9, 2), task=task, **COMMON))


@pytest.mark.parametrize("loss", ["cross_entropy", "both"])
def test_pixels_that_are_not_ignored_count_the_same_in_all_processes(loss: str) -> None:
    assert_alike(on_ranks(fit_masks, loss), fit_masks(loss))


class Tags(Dataset[Any]):
    """Rows of 2 to 9 tokens, each with a tag; some have none."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 10, (count,), generator=draw).tolist()
        self.rows = [torch.randint(1, 12, (length,), generator=draw) for length in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        return row, torch.where(row > 9, -100, row % 3)


def padded(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    rows, tags = zip(*pairs, strict=True)
    pad = nn.utils.rnn.pad_sequence
    return pad(list(rows), batch_first=True), pad(list(tags), True, -100)


def tags(count: int, seed: int) -> DataLoader[Any]:
    return DataLoader(Tags(count, seed), batch_size=8, shuffle=seed == 1, collate_fn=padded)


def fit_tags() -> Fitted:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 3))
    fl.train_only(model, "1")
    return fitted(fl.fit(model, tags(21, 1), tags(9, 2), task=fl.Tokens(3), **COMMON))


def test_tokens_count_the_same_in_all_processes_and_a_loader_is_shared() -> None:
    assert_alike(on_ranks(fit_tags), fit_tags())


def furthest(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """A loss of a batch as a whole: of its hardest samples, against its mean."""
    errors = nn.functional.cross_entropy(outputs["logits"], targets, reduction="none")
    return errors.max() + (outputs["logits"].mean(dim=0) ** 2).sum()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(300, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.stem(x.flatten(1)).relu())}


def fit_own(count: int = 21) -> Fitted:
    torch.manual_seed(0)
    model = Named()
    fl.train_only(model, "head")
    data = pictures(count, 1), pictures(9, 2)
    return fitted(fl.fit(model, *data, loss=furthest, **COMMON))


def test_a_loss_of_ones_own_is_that_of_the_whole_batch() -> None:
    assert_alike(on_ranks(fit_own, size=2), fit_own())


def test_a_loss_of_ones_own_takes_batches_that_leave_a_process_out() -> None:
    assert_alike(on_ranks(fit_own, 17, size=3), fit_own(17))


def fit_kinds() -> list[Fitted]:
    found = []
    for task in (fl.Regression(), fl.MultiLabel(2)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        fl.train_only(model, "2")
        inputs = torch.randn(21, 4)
        is_numbers = isinstance(task, fl.Regression)
        targets = inputs[:, :2] * 3 if is_numbers else (inputs[:, :2] > 0).float()
        data = TensorDataset(inputs, targets)
        found.append(fitted(fl.fit(model, data, data, task=task, **COMMON)))
    return found


def test_numbers_and_labels_are_learnt_as_in_one_process() -> None:
    for shared, alone in zip(zip(*on_ranks(fit_kinds), strict=True), fit_kinds(), strict=True):
        assert_alike(list(shared), alone)
