"""Extractions that several processes share: small pictures and texts, and who computed what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.features import Computing, FeatureData

PICTURES, BATCH = 150, 4
RECORD_BYTES = 32  # of a row of one value that is not ragged


class Noise(fl.Samples):
    """Pictures of noise, each made when it is asked for; the first ones are there twice."""

    def __init__(self, count: int = PICTURES, *, twice: int = 0, broken: int = -1) -> None:
        self.count, self.twice, self.broken = count, twice, broken
        self.targets = torch.arange(len(self)) % 3
        self.loaded = 0

    def __len__(self) -> int:
        return self.count + self.twice

    def load(self, row: int) -> Tensor:
        if row == self.broken:
            raise fl.DataError(f"picture {row} is torn")
        self.loaded += 1
        return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(row % self.count))


def pictures_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    below = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
    )
    model = nn.Sequential(below, nn.Linear(32, 3))
    fl.freeze(model, "0")
    return model


class Texts(fl.Samples):
    """Token ids of 3 to 12 positions with their mask."""

    def __init__(self, count: int = 90) -> None:
        draw = torch.Generator().manual_seed(5)
        sizes = torch.randint(3, 13, (count,), generator=draw).tolist()
        self._ids = [torch.randint(1, 40, (size,), generator=draw) for size in sizes]
        self.targets, self.lengths = torch.arange(count) % 3, sizes

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, row: int) -> dict[str, Tensor]:
        ids = self._ids[row]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def collate(self, loaded: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        return {n: pad([one[n] for one in loaded], batch_first=True) for n in loaded[0]}


class Reader(nn.Module):
    """Frozen hidden states of each position; their mean over a text's own positions is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.words(input_ids)))
        weights = attention_mask[..., None].to(hidden.dtype)
        found: Tensor = self.head((hidden * weights).sum(dim=1) / weights.sum(dim=1))
        return found


def texts_net() -> nn.Module:
    torch.manual_seed(0)
    model = Reader()
    fl.train_only(model, "head")
    return model


@dataclass(frozen=True)
class Found:
    """What one process got of an extraction.

    Attributes:
        values: of all rows.
        passed: rows that went through its prefix.
        form: as the store has it, and in words.
    """

    values: list[Tensor]
    computed: int
    computed_by: tuple[int, ...]
    passed: int
    form: str


def extracted(
    samples: fl.Samples, store: Path | fl.FeatureStore, *, seed: int = 0, **options: Any
) -> Found:
    """The features of pictures or texts, alone or with the processes of a launcher."""
    model = texts_net() if isinstance(samples, Texts) else pictures_net(seed)
    few = samples.collate([samples.load(row) for row in range(2)])
    cut = fl.cut(model, few)
    with passes() as passed:
        data = fl.extract(
            cut, samples, store, **{"precision": "exact", "batch_size": BATCH, **options}
        )
    return found_of(data, passed)


def found_of(data: FeatureData, passed: Sequence[int]) -> Found:
    every = torch.arange(len(data) * data.views)
    values = list(data.values(every))
    return Found(values, data.computed, data.computed_by, sum(passed), data.form)


@contextmanager
def passes(before: Callable[[int], None] = lambda _: None) -> Iterator[list[int]]:
    """The rows of each pass of this process; `before` is called with a pass's number."""
    passed: list[int] = []
    plain = Computing.rows

    def rows(compute: Computing, samples: Any, collate: Any) -> tuple[Tensor, ...]:
        before(len(passed))
        passed.append(len(samples))
        return plain(compute, samples, collate)

    Computing.rows = rows  # type: ignore[method-assign]
    try:
        yield passed
    finally:
        Computing.rows = plain  # type: ignore[method-assign]


def all_begin(folder: Path, size: int) -> Callable[[int], None]:
    """Nobody goes on with a first pass before all are about to make theirs."""

    def before(number: int) -> None:
        if number == 0:
            (folder / f"begun-{os.getpid()}").touch()
            while len(list(folder.glob("begun-*"))) < size:
                time.sleep(0.01)

    return before


def killed_at(number: int, folder: Path) -> Callable[[int], None]:
    """Ends this process, as the system would, before a pass of that number."""

    def before(passed: int) -> None:
        if passed == number:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def until_killed(folder: Path) -> Callable[[int], None]:
    """Goes on with a second pass once another was killed: until then that one has all to do."""

    def before(passed: int) -> None:
        while passed == 1 and not (folder / "killed").exists():
            time.sleep(0.01)

    return before


def rows_in_logs(store: Path) -> int:
    """Records of all segments: a row that was stored twice counts twice."""
    logs = [path for entry in fl.FeatureStore(store).ls() for path in entry.path.glob("*/rows")]
    return sum(path.stat().st_size for path in logs) // RECORD_BYTES


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
