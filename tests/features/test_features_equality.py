"""Training on stored features gives the bits of the plain loop where exactness is asked for."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from feature_world import (
    Pictures,
    both,
    figures,
    images,
    pictures_net,
    word_data,
    words_net,
    write_images,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.data import Augment, ImageDataset, ImageSet, read_set
from frostline.engine import Hook, Training
from frostline.features import Computing, difference_by_place
from frostline.models import load_model
from warm_process import Start


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures to train on, 10 to validate: no multiple of the batch size."""
    root = tmp_path_factory.mktemp("photos")
    write_images(root / "train", 10)
    write_images(root / "val", 5, seed=1)
    return root


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_stored_features_train_to_the_bits_of_the_plain_loop(
    photos: Path, tmp_path: Path, optimizer: str
) -> None:
    found = both(
        pictures_net,
        images(photos / "train"),
        images(photos / "val"),
        tmp_path,
        optimizer=optimizer,
    )
    found.assert_equal()
    assert found.stored.computed == 30


@pytest.mark.parametrize("batch_size", [1, 3, 7, 19, 20, 64])
def test_no_batch_size_changes_a_bit(photos: Path, tmp_path: Path, batch_size: int) -> None:
    def make() -> Pictures:
        model = pictures_net()
        fl.freeze(model, "kind:norm")  # which cannot be trained on one sample
        return model

    train, val = images(photos / "train"), images(photos / "val")
    both(make, train, val, tmp_path, batch_size=batch_size).assert_equal()


def test_views_are_stored_each_and_train_to_the_bits_of_the_plain_loop(
    photos: Path, tmp_path: Path
) -> None:
    train = images(photos / "train", augment="views:2")
    found = both(pictures_net, train, images(photos / "val"), tmp_path, epochs=4)
    found.assert_equal()
    assert found.stored.computed == 2 * 20 + 10
    losses = [line[1] for line in figures(found.stored)]
    assert len(set(losses)) == 4


def test_live_views_go_through_the_prefix_to_the_bits_of_the_plain_loop(
    photos: Path, tmp_path: Path
) -> None:
    train = images(photos / "train", augment="live")
    found = both(pictures_net, train, images(photos / "val"), tmp_path)
    found.assert_equal()
    assert found.stored.computed == 10  # validation only
    assert any("augment live makes a new view every epoch" in line for line in found.stored.says)


def test_weighted_classes_and_smoothed_labels_change_nothing_of_that(
    photos: Path, tmp_path: Path
) -> None:
    train = images(photos / "train")
    labels = [s for s in train.images.samples if s.label == 0 or s.path.stem in "1234"]
    uneven = ImageDataset(ImageSet(train.classes, tuple(labels)), train.preprocessing)
    options = {"class_weights": "balanced", "label_smoothing": 0.1, "clip_norm": 0.5}
    both(pictures_net, uneven, images(photos / "val"), tmp_path, **options).assert_equal()


def test_sequences_train_to_the_bits_of_the_plain_loop(tmp_path: Path) -> None:
    found = both(words_net, word_data(38, 1), word_data(20, 2), tmp_path, batch_size=8)
    found.assert_equal()


def test_a_part_that_torch_computes_by_kernels_of_its_own_is_computed_in_each_epoch(
    tmp_path: Path,
) -> None:
    """A frozen encoder layer takes torch's fast path in the model, and no graph does."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 2))
        fl.freeze(model, "0")
        return model

    data = TensorDataset(torch.randn(24, 5, 8), torch.arange(24) % 2)
    stored, plain = (
        fl.fit(make(), data, data, features=where, precision="exact", epochs=2, batch_size=8)
        for where in (tmp_path / "store", "off")
    )
    assert fl.fingerprint(stored.model) == fl.fingerprint(plain.model)
    made = fl.cut(make(), data.tensors[0][:8])
    words = "to be exact they are computed in each epoch" if made.error else "exactly as in the mod"
    assert any(words in line for line in stored.says)
    rows = fl.extract(made, data, tmp_path / "rows", precision="exact")
    assert ("exactly" in rows.form) == (made.error == 0)


def test_rows_that_depend_on_the_size_of_their_batch_are_computed_in_it(tmp_path: Path) -> None:
    """A matrix product of few rows sums in another order than one of many."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 2))
        fl.freeze(model, "0")
        return model

    inputs = torch.randn(66, 512)
    data = TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
    few, many = (make()[0](inputs[:n])[:2] for n in (2, 32))
    found = both(make, data, data, tmp_path, batch_size=32)
    found.assert_equal()
    told = [line for line in found.stored.says if "with the number of rows in a pass" in line]
    assert bool(told) == (not torch.equal(few, many))
    assert all("the last 2 of 66 are computed in each epoch" in line for line in told)
    parts = fl.FeatureStore(tmp_path).ls()[0].parts
    assert parts.get("pass", "32 samples") == "32 samples filled up"


class Gate(nn.Module):
    """A narrow frozen part, whose matrix products sum otherwise in passes of other sizes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1))
        self.head = nn.Linear(1, 3)
        fl.freeze(self, "lower")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lower(x))
        return out


@pytest.mark.parametrize("stored_before", [0, 21])
def test_rows_are_those_of_full_passes_where_some_samples_are_not_computed(
    tmp_path: Path, stored_before: int
) -> None:
    inputs = torch.randn(96, 8, generator=torch.Generator().manual_seed(2))
    inputs[5] = inputs[3]
    for width in (17, 33, 64, 100):
        made = fl.cut(Gate(width), inputs[:4])
        for batch_size in (16, 32):
            store = fl.FeatureStore(tmp_path / f"{width} {batch_size}")
            for first in (stored_before, 96) if stored_before else (96,):
                data = TensorDataset(inputs[-first:], torch.arange(first) % 3)
                found = fl.extract(made, data, store, precision="exact", batch_size=batch_size)
            batches = inputs.split(batch_size)
            expected = torch.cat([made.prefix(batch)[0] for batch in batches])
            assert torch.equal(found.rows.gather(torch.arange(96))[0], expected)


def test_pictures_with_their_channels_last_train_to_the_bits_of_the_plain_loop(
    tmp_path: Path,
) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        lower = nn.Sequential(
            *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        model = nn.Sequential(lower, nn.Linear(256, 3))
        fl.freeze(model, "0")
        return model

    inputs = torch.randn(24, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs.permute(0, 3, 1, 2), torch.arange(24) % 3)
    both(make, data, data, tmp_path, batch_size=8).assert_equal()


# torch 2.9 warns of its own getter that another one is to come.
@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")
@pytest.mark.parametrize("setting", ["medium", "high"])
def test_rows_of_another_matmul_precision_are_not_taken(tmp_path: Path, setting: str) -> None:
    data, store = word_data(20, 1), fl.FeatureStore(tmp_path)
    made = fl.cut(words_net(), data.tensors[0][:4])
    before = torch.get_float32_matmul_precision()
    count = fl.extract(made, data, store, precision="exact").computed
    try:
        torch.set_float32_matmul_precision(setting)
        assert fl.extract(made, data, store, precision="exact").computed == count
    finally:
        torch.set_float32_matmul_precision(before)
    assert fl.extract(made, data, store, precision="exact").computed == 0


def test_rows_without_onednn_are_not_taken_for_those_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, store = word_data(20, 1), fl.FeatureStore(tmp_path)
    made = fl.cut(words_net(), data.tensors[0][:4])
    count = fl.extract(made, data, store, precision="exact").computed
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    found = fl.extract(made, data, store, precision="exact")
    assert found.computed == count
    assert found.why.startswith("kernels: ")


def test_exact_rows_of_another_number_of_threads_are_not_taken(tmp_path: Path) -> None:
    data, store = word_data(20, 1), fl.FeatureStore(tmp_path)
    made = fl.cut(words_net(), data.tensors[0][:4])
    before = torch.get_num_threads()
    count = fl.extract(made, data, store, precision="exact").computed
    try:
        torch.set_num_threads(before + 1)
        assert fl.extract(made, data, store, precision="exact").computed == count
    finally:
        torch.set_num_threads(before)
    assert fl.extract(made, data, store, precision="exact").computed == 0


class StopAfter(Hook):
    """Interrupts the run when so many epochs are done."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch(self, training: Training) -> None:
        if training.position.epochs == self.epochs:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole_runs() -> dict[str, fl.Run]:
    """The uninterrupted run in the plain loop, by how its pictures are augmented."""
    return {}


@pytest.mark.parametrize("augment", ["none", "views:2", "live"])
@pytest.mark.parametrize(("first", "then"), [("store", "store"), ("off", "off"), ("store", "new")])
def test_a_resumed_run_ends_at_the_bits_of_the_plain_loop(
    photos: Path,
    tmp_path: Path,
    whole_runs: dict[str, fl.Run],
    first: str,
    then: str,
    augment: str,
) -> None:
    train, val = images(photos / "train", augment=augment), images(photos / "val")
    options: dict[str, Any] = {"epochs": 4, "batch_size": 6, "device": "cpu", "lr": 0.02}
    options["precision"] = "exact"
    if augment not in whole_runs:
        whole_runs[augment] = fl.fit(pictures_net(), train, val, features="off", **options)
    whole = whole_runs[augment]
    where = {"off": "off", "store": tmp_path / "store", "new": tmp_path / "another"}
    options["out"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fl.fit(pictures_net(), train, val, features=where[first], hooks=[StopAfter(2)], **options)
    resumed = fl.fit(pictures_net(), train, val, features=where[then], resume=True, **options)
    assert figures(resumed) == figures(whole)
    assert fl.fingerprint(resumed.model) == fl.fingerprint(whole.model)
    views = {"none": 1, "views:2": 2, "live": 0}[augment]
    assert resumed.computed == (10 + 20 * views if then == "new" else 0)


# Real photos and weights


def some_photos(
    data_dir: Path, preprocessing: fl.Preprocessing, *, augment: str = "none"
) -> tuple[ImageDataset, ImageDataset]:
    """24 pictures to train on, 9 to validate."""
    found = []
    for part, count in (("train", 24), ("val", 9)):
        every = read_set(data_dir / "hymenoptera" / part, classes=("ants", "bees"))
        few = every.samples[:: len(every.samples) // count][:count]
        view = Augment.parse(augment if part == "train" else "none")
        found.append(ImageDataset(ImageSet(every.classes, few), preprocessing, augment=view))
    return found[0], found[1]


REAL = {
    "head with live dropout": ("squeezenet1_1", "squeezenet1_1.pth", "{head}"),
    "upper blocks with batch norm": (
        "mobilenet_v2",
        "mobilenet_v2.features.safetensors",
        "features.18 | {head}",
    ),
}


@pytest.mark.parametrize("which", REAL)
def test_real_photos_train_to_the_bits_of_the_plain_loop(
    data_dir: Path, tmp_path: Path, which: str
) -> None:
    name, file, train = REAL[which]
    preprocessing = fl.Preprocessing(resize=72, crop=(64, 64))

    def make() -> nn.Module:
        weights = str(data_dir / "weights" / file)
        loaded = load_model(name, weights=weights, classes=2, seed=0)
        fl.train_only(loaded.model, train.format(head=loaded.head))
        return loaded.model

    data = some_photos(data_dir, preprocessing, augment="views:2")
    found = both(make, *data, tmp_path, epochs=3, batch_size=11, lr=1e-3)
    found.assert_equal()
    assert found.stored.computed == 2 * 24 + 9


COMPILING = """
import sys, torch, torch._inductor.config
import frostline as fl
from torch import Tensor, nn
from torch.utils.data import TensorDataset
torch._inductor.config.freezing = True
data = TensorDataset(torch.randn(40, 16), torch.arange(40) % 2)
for compiled in (False, True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 2))
    fl.freeze(model, "0")
    run = fl.fit(
        model, data, data, features=sys.argv[1], compile=compiled, epochs=2, batch_size=16
    )
    print(*(one["loss"] for line in run.history for one in (line.train, line.validation)))
raise SystemExit
"""


def test_what_is_trained_can_be_compiled(start: Start, tmp_path: Path) -> None:
    """The compiled suffix computes what the plain one does, up to the order of summation.

    Also where the process has asked inductor to write weights into its code, its "freezing". In a
    process of its own: the compiler leaves threads behind.
    """
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none")
    # Without processes beside it, and without headers compiled ahead for more than this.
    no_headers = {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    alone = os.environ | no_headers | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = start([tmp_path], alone, code=COMPILING)
    assert done.returncode == 0, done.stderr
    plain, compiled = (list(map(float, line.split())) for line in done.stdout.splitlines()[-2:])
    assert plain == pytest.approx(compiled, rel=1e-5)


def test_compiling_without_a_compiler_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    with pytest.raises(fl.ConfigError, match=r"needs a C\+\+ compiler .* Install g\+\+"):
        fl.fit(model, data, data, compile=True, device="cpu")


def test_rows_that_differ_by_their_place_in_a_batch_are_computed_in_each_epoch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As matrix kernels of some processors do, which cannot be had on every one.
    module = import_module("frostline.features.computing")
    monkeypatch.setattr(module, "difference_by_place", lambda *_: 1e-7)
    found = both(pictures_net, images(photos / "train"), images(photos / "val"), tmp_path)
    found.assert_equal()
    assert found.stored.computed == 0
    assert any("by up to 1e-07 with their place in a batch" in line for line in found.stored.says)
    assert not any(line.startswith("Saved") for line in found.stored.says)


@pytest.mark.parametrize("by_place", [0.0, 1e-3])
def test_a_difference_by_place_is_seen(by_place: float) -> None:
    def compute(x: Tensor) -> tuple[Tensor, ...]:
        return x, x * (1 + by_place * torch.arange(len(x)).unsqueeze(1))

    found = difference_by_place(cast("Computing", compute), torch.ones(6, 4))
    assert found == pytest.approx(5 * by_place / (1 + 5 * by_place), rel=1e-3)
