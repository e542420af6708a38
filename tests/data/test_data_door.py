"""Whatever a user hands over is the same samples in a plain loop and in a feature store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import frostline as fl
from frostline.data import (
    Augment,
    ImageDataset,
    ImageSet,
    Sample,
    audit,
    first_batch,
    make_batches,
    open_data,
    read_splits,
)
from frostline.data import image_samples as images_module

INPUTS = torch.arange(60.0).view(20, 3)
LABELS = torch.arange(20) % 2


class Noted(fl.Samples):
    """Numbers of a user's own, which notes what is asked of it."""

    def __init__(self) -> None:
        self.targets = LABELS.tolist()
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 20

    def load(self, row: int) -> Tensor:
        self.loaded.append(row)
        return INPUTS[row]

    def name(self, sample: int) -> str:
        return f"probe {sample}"


class Told(Noted):
    """The same, told apart without loading."""

    def ids(self, rows: Any) -> list[bytes]:
        return [row.to_bytes(16, "little") for row in rows]


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return INPUTS[index], int(LABELS[index])


KINDS: dict[str, Callable[[], object]] = {
    "tensors": lambda: TensorDataset(INPUTS, LABELS),
    "data set": Pairs,
    "list of pairs": lambda: [(INPUTS[i], int(LABELS[i])) for i in range(20)],
    "tuple of pairs": lambda: tuple((INPUTS[i], int(LABELS[i])) for i in range(20)),
    "own": Noted,
    "own with ids": Told,
}


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest) -> object:
    return KINDS[request.param]()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    fl.freeze(made, "0")
    return made


def features(data: object, root: Path) -> Any:
    made = net()
    return fl.extract(fl.cut(made, INPUTS[:4]), data, fl.FeatureStore(root), precision="exact")


def test_every_kind_gives_the_same_batches(data: object) -> None:
    batches = make_batches(data, batch_size=8, shuffle=True, seed=3)
    expected = make_batches(KINDS["tensors"](), batch_size=8, shuffle=True, seed=3)
    for found, wanted in zip(batches.epoch(1), expected.epoch(1), strict=True):
        assert torch.equal(found.inputs, wanted.inputs)
        assert torch.equal(found.targets, wanted.targets)


def test_every_kind_has_its_features_stored(data: object, tmp_path: Path) -> None:
    found = features(data, tmp_path)
    assert found.computed == 20
    assert torch.equal(found.targets, LABELS)
    assert torch.allclose(found.rows.gather(torch.arange(20))[0], net()[:2](INPUTS))
    assert features(data, tmp_path).computed == 0


@pytest.mark.parametrize("kind", ["list of pairs", "own"])
def test_what_is_no_data_set_of_torch_trains_alike_on_features_and_plainly(
    kind: str, tmp_path: Path
) -> None:
    def fitted(store: Path | str) -> fl.Fingerprint:
        model, data = net(), KINDS[kind]()
        options = {"epochs": 2, "batch_size": 8, "precision": "exact", "device": "cpu"}
        return fl.fingerprint(fl.fit(model, data, data, features=store, **options).model)

    assert fitted(tmp_path) == fitted("off")


def test_numbers_that_are_equal_share_their_rows_whatever_they_came_as(tmp_path: Path) -> None:
    assert features(KINDS["tensors"](), tmp_path).computed == 20
    assert features(KINDS["list of pairs"](), tmp_path).computed == 0
    assert features(KINDS["own"](), tmp_path).computed == 0
    assert features(KINDS["own with ids"](), tmp_path).computed == 20


def test_samples_are_taken_as_they_are(data: object) -> None:
    opened = open_data(data)
    assert open_data(opened) is opened
    assert len(opened) == 20
    assert opened.why_not_stored() == ""


@pytest.mark.parametrize(
    "given",
    [
        [(INPUTS[:8], LABELS[:8]), (INPUTS[8:], LABELS[8:])],
        DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8),
    ],
    ids=["list", "loader"],
)
def test_batches_stay_batches_and_say_why_nothing_is_stored(given: object) -> None:
    opened = open_data(given)
    told = "makes its own batches, so its samples cannot be told apart"
    assert told in opened.why_not_stored()
    assert open_data(opened) is opened
    assert len(opened) == 20
    few = first_batch(opened, 4)
    assert torch.equal(few.inputs, INPUTS[:4])
    assert few.names[3] == "sample 3 of batch 0"
    for ask in (opened.load, lambda row: opened.ids([row])):
        with pytest.raises(fl.DataError, match=told):
            ask(0)


def test_samples_of_ones_own_are_named_as_they_name_themselves() -> None:
    (batch,) = make_batches(Noted(), batch_size=20, shuffle=False, seed=0).epoch(0)
    assert batch.names[7] == "probe 7"


def test_what_can_be_told_apart_unloaded_is_loaded_for_new_rows_alone(tmp_path: Path) -> None:
    data = Told()
    features(data, tmp_path)
    data.loaded.clear()
    features(data, tmp_path)
    assert not set(data.loaded) - set(range(8))  # those that a form would be tried on


def test_half_a_source_of_ones_own_is_refused_by_what_it_lacks() -> None:
    class Half:
        def __len__(self) -> int:
            return 3

        def load(self, row: int) -> None:
            raise AssertionError(row)

        ids = load

    told = r"the Half has ids and load, but no targets, .*, in_batches\. Derive it from fl"
    with pytest.raises(fl.DataError, match=told):
        open_data(Half())


def test_targets_that_come_with_their_items_are_known_once_these_are_loaded() -> None:
    class Once(Pairs):
        asked = 0

        def __getitem__(self, index: int) -> Any:
            self.asked += 1
            return super().__getitem__(index)

    data = Once()
    opened = open_data(data)
    opened.ids(range(10))
    before = data.asked
    assert list(opened.targets) == LABELS.tolist()
    assert data.asked == before + 10


# What stores of before hold is found again: these were computed by version 0.1.


def hashes(data: object) -> list[str]:
    opened = open_data(data)
    rows = range(len(opened) * opened.views)
    return [row_id.hex() for row_id in opened.ids(rows)]


def test_rows_of_tensors_keep_their_ids() -> None:
    data = TensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0]))
    assert hashes(data) == [
        "b99980e9913722c8997f79247a7245ac",
        "ebc4ba6112dfa0a2aeaa60e206f5e70e",
        "0674d40da13bb29dec774dc3b392de73",
    ]
    assert (open_data(data).transform, open_data(data).views) == ("none", 1)


def test_items_keep_their_ids() -> None:
    def item(i: int) -> Any:
        ones = np.ones(2, np.float32)
        return {"ids": torch.tensor([i, 7]), "mask": np.float32(i) * ones, "n": i}, i

    assert hashes([item(0), item(1)]) == [
        "70620a505baa0cf0cfab435a1c5f2316",
        "75795378ffe9561e5e12ea51767f87ee",
    ]


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ("none", ["f8e01b0c4eac12bf09d8f6661ec2f896", "759340c0cbd5beab49ddc55962d49b01"]),
        (
            "views:2",
            [
                "86a1cb6ad5f77c04821262e8dceed237",
                "b53e8648c612ca7b4384490ec6799e65",
                "c91e765d71cf7d09ba49899c5876e266",
                "86c1ac8371a68cfdd1d9210e816ac55e",
            ],
        ),
    ],
)
def test_pictures_keep_their_ids(tmp_path: Path, augment: str, expected: list[str]) -> None:
    files = [tmp_path / "a" / "1.png", tmp_path / "b" / "2.png"]
    for file, content in zip(files, (b"one", b"two"), strict=True):
        file.parent.mkdir()
        file.write_bytes(content)
    images = ImageSet(("a", "b"), tuple(Sample(file, n) for n, file in enumerate(files)))
    preprocessing = fl.Preprocessing(8, (8, 8))
    data = ImageDataset(images, preprocessing, augment=Augment.parse(augment), seed=5)
    assert hashes(data) == expected
    assert open_data(data).transform.startswith(f"{preprocessing!r}, Pillow ")


def test_what_a_key_is_made_of_has_its_names_of_before(tmp_path: Path) -> None:
    features(KINDS["tensors"](), tmp_path)
    (entry,) = fl.FeatureStore(tmp_path).ls()
    assert set(entry.parts) >= {"prefix", "tensors", "form", "torch", "kernels", "pass", "threads"}
    assert entry.parts["transform"] == "none"
    assert entry.parts["values"] == "float32 [4]"
    assert entry.parts["storage"] == "float32"


# Digests of the audit


class Hashed:
    """Files that were read to be hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[Path] = []
        plain = images_module.file_digest

        def digest(path: Path) -> str:
            self.files.append(path)
            return plain(path)

        monkeypatch.setattr(images_module, "file_digest", digest)


def checked(root: Path) -> ImageDataset:
    found = audit(read_splits(root), bad_images="error")
    return ImageDataset(found.splits.train, fl.Preprocessing(8, (8, 8)), digests=found.digests)


def test_a_picture_that_was_audited_is_not_read_again_for_its_id(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = checked(make_folder({"a": 6, "b": 6}))
    hashed, opened = Hashed(monkeypatch), open_data(data)
    ids = opened.ids(range(len(data)))
    assert hashed.files == []
    unaudited = open_data(ImageDataset(data.images, data.preprocessing))
    assert unaudited.ids(range(len(data))) == ids
    assert len(hashed.files) == len(data)
    unaudited.ids(range(len(data)))
    assert len(hashed.files) == len(data)


def test_a_picture_that_changed_since_it_was_hashed_is_hashed_again(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = checked(make_folder({"a": 6, "b": 6}))
    hashed, opened = Hashed(monkeypatch), open_data(data)
    before = opened.ids(range(len(data)))
    changed = data.images.samples[3].path
    changed.write_bytes(changed.read_bytes() + b"more")
    after = opened.ids(range(len(data)))
    assert hashed.files == [changed]
    assert [i for i in range(len(data)) if before[i] != after[i]] == [3]
