"""Each row is computed once: what is new costs what is new, and a miss says what differs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_world import (
    Counted,
    Pictures,
    cut_of,
    images,
    pictures_net,
    word_data,
    words_net,
    write_images,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.features import FeatureData
from small_world import write_picture


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


class World:
    """30 pictures of each class, and their features."""

    def __init__(self, root: Path) -> None:
        self.photos = write_images(root / "photos", 30)
        self.store = fl.FeatureStore(root / "store")

    def extract(self, model: nn.Module | None = None, **options: Any) -> FeatureData:
        data = images(
            self.photos, **{k: options.pop(k) for k in ("augment", "crop") if k in options}
        )
        made = cut_of(model or pictures_net(), data)
        return fl.extract(made, data, self.store, precision="exact", **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_second_extraction_makes_no_forward_pass(world: World, counted: Counted) -> None:
    first = world.extract()
    assert (counted.taken(), first.computed, first.why) == (60, 60, "nothing stored yet")
    second = world.extract()
    assert (counted.taken(), second.computed, second.why) == (0, 0, "")
    every = torch.arange(60)
    for one, other in zip(first.rows.gather(every), second.rows.gather(every), strict=True):
        assert torch.equal(one, other)


def test_ten_new_pictures_among_a_thousand_cost_ten_forwards(
    tmp_path: Path, counted: Counted
) -> None:
    world = World(tmp_path)
    write_images(world.photos, 500)
    world.extract()
    assert counted.taken() == 1000
    write_images(world.photos, 505)
    found = world.extract()
    assert (counted.taken(), found.computed) == (10, 10)
    assert found.why == "rows of these samples were missing"
    assert len(found) == 1010


def test_renamed_pictures_cost_nothing(world: World, counted: Counted) -> None:
    before = world.extract()
    counted.taken()
    for index in range(30):
        (world.photos / "dark" / f"{index}.png").rename(
            world.photos / "dark" / f"z{99 - index}.png"
        )
    after = world.extract()
    assert counted.taken() == 0
    values = [found.rows.gather(torch.arange(60))[0] for found in (before, after)]
    assert not torch.equal(*values)  # another order
    assert torch.equal(*[v.sort(dim=0).values for v in values])


def test_a_picture_that_changed_under_its_name_is_computed_again(
    world: World, counted: Counted
) -> None:
    before = world.extract()
    counted.taken()
    write_picture(world.photos / "dark" / "0.png", 70, seed=5)
    after = world.extract()
    assert counted.taken() == 1
    same = [torch.equal(before[i][0], after[i][0]) for i in range(60)]
    assert same.count(False) == 1


def test_equal_pictures_are_computed_once(world: World, counted: Counted) -> None:
    for index in range(20):
        shutil.copy(world.photos / "dark" / "0.png", world.photos / "light" / f"copy {index}.png")
    found = world.extract()
    assert counted.taken() == 60
    assert len(found) == 80
    assert int(found.targets.sum()) == 50


def test_one_changed_weight_of_the_prefix_computes_all_again_and_is_named(
    world: World, counted: Counted
) -> None:
    world.extract()
    counted.taken()
    model = pictures_net()
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] += 1e-6
    found = world.extract(model)
    assert counted.taken() == 60
    assert found.why.startswith("tensors: ")
    assert ";" not in found.why


def test_a_changed_buffer_of_the_prefix_computes_all_again(world: World, counted: Counted) -> None:
    world.extract()
    counted.taken()
    model = pictures_net()
    model.features[1].running_var[3] *= 1.001
    assert world.extract(model).why.startswith("tensors: ")
    assert counted.taken() == 60


def test_what_lies_above_the_line_may_change(world: World, counted: Counted) -> None:
    world.extract()
    counted.taken()
    model = pictures_net()
    with torch.no_grad():
        model.head.weight += 1
        model.middle[0].bias += 1
    model.middle[1].running_mean += 1
    assert world.extract(model).computed == counted.taken() == 0


def test_another_head_costs_nothing(world: World, counted: Counted) -> None:
    world.extract()
    counted.taken()
    model = pictures_net()
    model.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 7))
    assert world.extract(model).computed == counted.taken() == 0


class Named(nn.Module):
    """A convolution to freeze, under any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        self.head = nn.Conv2d(4, 2, 3)
        self.lower = name
        fl.freeze(self, name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.get_submodule(self.lower)(x)).mean((2, 3))
        return out


def test_a_renamed_module_costs_nothing(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(6, 3, 8, 8), torch.arange(6) % 2)
    computed = [
        fl.extract(cut_of(Named(name), data), data, fl.FeatureStore(tmp_path)).computed
        for name in ("backbone", "encoder")
    ]
    assert computed == [6, 0]


def test_samples_of_another_size_are_kept_beside_the_first(tmp_path: Path) -> None:
    store = fl.FeatureStore(tmp_path)
    for size, computed in ((8, 6), (12, 6), (8, 0)):
        inputs = torch.full((6, 3, size, size), 0.5) * torch.arange(6).view(6, 1, 1, 1)
        data = TensorDataset(inputs, torch.arange(6) % 2)
        made = cut_of(Named("backbone"), data)
        assert fl.extract(made, data, store, precision="exact").computed == computed


def test_another_model_of_the_same_name_computes_all_again(world: World, counted: Counted) -> None:
    world.extract()
    counted.taken()
    model = pictures_net()
    model.features[2] = nn.Sigmoid()
    assert type(model) is Pictures
    assert "prefix: " in world.extract(model).why
    assert counted.taken() == 60


@pytest.mark.parametrize("change", ["crop", "mean", "interpolation"])
def test_another_transform_computes_all_again_and_is_named(
    world: World, counted: Counted, change: str
) -> None:
    from frostline.data import ImageDataset

    world.extract()
    counted.taken()
    data = images(world.photos)
    other: dict[str, Any] = {
        "crop": {"crop": (14, 14)},
        "mean": {"mean": (0.5, 0.5, 0.5)},
        "interpolation": {"interpolation": "bicubic"},
    }[change]
    preprocessing = fl.Preprocessing(**{"resize": 16, "crop": (16, 16), **other})
    changed = ImageDataset(data.images, preprocessing)
    found = fl.extract(cut_of(pictures_net(), changed), changed, world.store, precision="exact")
    assert counted.taken() == 60
    assert "transform: " in found.why


def test_a_store_that_was_copied_or_moved_costs_nothing(
    world: World, counted: Counted, tmp_path: Path
) -> None:
    world.extract()
    counted.taken()
    shutil.copytree(world.store.root, tmp_path / "copy")
    world.store = fl.FeatureStore(tmp_path / "copy")
    assert world.extract().computed == counted.taken() == 0
    (tmp_path / "copy").rename(tmp_path / "moved")
    world.store = fl.FeatureStore(tmp_path / "moved")
    assert world.extract().computed == counted.taken() == 0


def test_each_view_is_stored_and_epochs_walk_through_them(world: World, counted: Counted) -> None:
    found = world.extract(augment="views:3")
    assert (counted.taken(), found.views, len(found.rows)) == (180, 3, 180)
    batches = found.batches(batch_size=60, shuffle=False)
    epochs = [next(batches.epoch(epoch)).inputs[0] for epoch in range(6)]
    assert torch.equal(epochs[0], epochs[3])
    assert torch.equal(epochs[2], epochs[5])
    assert not torch.equal(epochs[0], epochs[1])
    assert world.extract(views=3).computed == counted.taken() == 0
    assert world.extract(views=4).computed == counted.taken() == 60


def test_plain_pictures_are_kept_beside_their_views(world: World, counted: Counted) -> None:
    world.extract()
    world.extract(augment="views:2")
    assert counted.taken() == 60 + 120
    assert world.extract().computed == counted.taken() == 0
    assert len(world.store.ls()) == 1


def test_a_form_of_lower_precision_is_kept_apart(world: World, counted: Counted) -> None:
    world.extract()
    world.extract(storage="int8")
    assert counted.taken() == 120
    found = {entry.parts["storage"] for entry in world.store.ls()}
    assert found == {"float32", "int8"}


def test_storage_in_fewer_bits_tells_its_error(world: World) -> None:
    errors = {name: world.extract(storage=name).storage_error for name in ("float32", "int8")}
    assert errors["float32"] == 0
    assert 0 < errors["int8"] < 0.02


def test_rows_of_a_tensor_data_set_are_known_by_their_numbers(
    tmp_path: Path, counted: Counted
) -> None:
    data, store = word_data(40, 1), fl.FeatureStore(tmp_path)
    made = cut_of(words_net(), data)
    fl.extract(made, data, store, precision="exact")
    assert counted.taken() == len({tuple(row.tolist()) for row in data.tensors[0]})
    ids, targets = data.tensors
    turned = torch.utils.data.TensorDataset(ids.flip(0), targets.flip(0))
    assert fl.extract(made, turned, store, precision="exact").computed == 0
    ids[3, 0] = (ids[3, 0] + 1) % 50
    assert fl.extract(made, data, store, precision="exact").computed == 1


def test_features_stay_those_of_the_prefix(world: World) -> None:
    data, model = images(world.photos), pictures_net()
    found = world.extract(model)
    model.eval()
    with torch.no_grad():
        expected = model.features(torch.stack([data[i][0] for i in range(60)]))
    values = found.rows.gather(torch.arange(60))[0]
    torch.testing.assert_close(values.flatten(1), expected, rtol=1e-5, atol=1e-6)
    assert found.targets.tolist() == list(data.labels)


def test_a_folder_serves_as_the_store_that_lies_there(world: World) -> None:
    first = world.extract()
    data = images(world.photos)
    again = fl.extract(cut_of(pictures_net(), data), data, str(world.store.root), precision="exact")
    assert (first.computed, again.computed) == (60, 0)
    assert str(again).splitlines()[0].startswith("Features of 60 samples: [")


def test_batches_say_that_they_are_read_by_epoch(world: World) -> None:
    batches = world.extract().batches(batch_size=8, shuffle=True)
    with pytest.raises(fl.ConfigError, match=r"Go through batches\.epoch\(0\), then"):
        list(batches)
    assert len(list(batches.epoch(0))) == 8
