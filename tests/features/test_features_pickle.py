"""Features go to another process by their place; what they are is checked there."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import frostline as fl
from frostline.features import FeatureData
from frostline.store import FeatureKey, FeatureStore, ValueSpec

NUMBERS = torch.arange(30.0).view(10, 3)
IDS = [bytes([number]) * 16 for number in range(10)]


def made(root: Path) -> FeatureData:
    """Ten samples of three numbers, and a value of another length in each."""
    values = (
        ValueSpec("map", (3,), torch.float32, "bfloat16"),
        ValueSpec("tokens", (None,), torch.float32),
    )
    features = FeatureStore(root).open(FeatureKey({"prefix": "stem"}), values)
    with features.writer() as writer:
        writer.put(IDS, [NUMBERS, [torch.ones(number % 3 + 1) for number in range(10)]])
    names = tuple(map(str, range(10)))
    return FeatureData(
        features.read(IDS), torch.arange(10), 1, 10, 0.1, "float32", 120, 0.0, "", names
    )


def all_of(data: FeatureData) -> list[Tensor]:
    return [*data.rows.gather(torch.arange(10)), data.rows.shapes(1), data.targets]


def assert_same(one: FeatureData, other: FeatureData) -> None:
    assert all(map(torch.equal, all_of(one), all_of(other)))


def test_features_come_through_pickle_as_they_were(tmp_path: Path) -> None:
    data = made(tmp_path)
    content = pickle.dumps(data)
    assert len(content) < 3000  # where the rows are, not what they are
    assert_same(pickle.loads(content), data)
    assert_same(copy.deepcopy(data), data)
    (batch, *_) = pickle.loads(pickle.dumps(data.batches(batch_size=10, shuffle=False))).epoch(0)
    assert torch.equal(batch.inputs[0], NUMBERS)


def test_no_rows_pickle_too(tmp_path: Path) -> None:
    values = (ValueSpec("map", (3,), torch.float32),)
    rows = FeatureStore(tmp_path).open(FeatureKey({"prefix": "stem"}), values).read([])
    assert len(pickle.loads(pickle.dumps(rows))) == 0


def test_a_copy_keeps_its_rows_from_being_pruned(tmp_path: Path) -> None:
    data = made(tmp_path)
    other = pickle.loads(pickle.dumps(data.rows))
    del data
    assert FeatureStore(tmp_path).prune(max_bytes=0) == ()
    del other
    assert len(FeatureStore(tmp_path).prune(max_bytes=0)) == 1


def test_rows_that_went_or_were_damaged_since_are_not_read(tmp_path: Path) -> None:
    data = made(tmp_path)
    content = pickle.dumps(data.rows)
    (file,) = tmp_path.glob("*/segment-*/value0.npy")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(fl.CorruptFeatures, match="1 of 10 rows"):
        pickle.loads(content)
    del data
    FeatureStore(tmp_path).prune(max_bytes=0)
    with pytest.raises(fl.StoreError, match="10 of 10 rows are not in"):
        pickle.loads(content)


def test_a_relative_store_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = (ValueSpec("map", (3,), torch.float32),)
    features = FeatureStore("store").open(FeatureKey({"prefix": "stem"}), values)
    with features.writer() as writer:
        writer.put(IDS, [NUMBERS])
    content = pickle.dumps(features.read(IDS))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(pickle.loads(content).gather(torch.arange(10))[0], NUMBERS)


class First(torch.utils.data.Dataset[Tensor]):
    """The first value of each sample."""

    def __init__(self, data: FeatureData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index][0][0]


def test_workers_of_a_data_loader_that_begin_anew_read_the_rows(tmp_path: Path) -> None:
    first = First(made(tmp_path))
    loader = DataLoader(first, batch_size=5, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), NUMBERS)
