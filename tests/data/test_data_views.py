from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from frostline.data import Augment, ImageDataset, ImageSet, Sample, read_splits, view
from frostline.data.views import _part
from frostline.errors import ConfigError, ImageError
from frostline.preprocessing import Preprocessing

SMALL = Preprocessing(resize=36, crop=(32, 24))


def noise(width: int = 60, height: int = 50) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_view_depends_on_its_seed_alone() -> None:
    image = noise()
    first = view(image, SMALL, seed=5)
    random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(view(image, SMALL, seed=5), first)
    assert not torch.equal(view(image, SMALL, seed=6), first)
    assert first.shape == (3, 32, 24)
    assert first.dtype == torch.float32


def test_view_moves_no_global_generator() -> None:
    states = random.getstate(), torch.get_rng_state()
    view(noise(), SMALL, seed=5)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_views_in_threads_equal_views_one_by_one() -> None:
    image = noise()
    expected = [view(image, SMALL, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: view(image, SMALL, seed=seed), range(40)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_half_of_the_views_are_mirrored() -> None:
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")
    rising = [bool((x := view(ramp, SMALL, seed=s))[0, 0, 0] < x[0, 0, -1]) for s in range(400)]
    assert 150 < sum(rising) < 250


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers())
def test_part_lies_inside_any_picture(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = _part(width, height, random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_part_keeps_to_its_area_and_ratio() -> None:
    for seed in range(300):
        left, top, right, bottom = _part(400, 300, random.Random(seed))
        wide, tall = right - left, bottom - top
        assert 0.34 < wide * tall / (400 * 300) <= 1
        assert 0.74 < wide / tall < 1.35


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1)])
def test_extreme_pictures_have_views(size: tuple[int, int]) -> None:
    assert view(noise(*size), SMALL, seed=0).isfinite().all()


@pytest.mark.parametrize("text", ["none", "live", "views:1", "views:16"])
def test_augment_text_comes_back(text: str) -> None:
    assert str(Augment.parse(text)) == text
    assert Augment.parse(f" {text.upper()} ") == Augment.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "some", "views", "views:", "views:x", "views:-1", "views:\u00b2", "live:2", "none:"],
)
def test_unknown_augment_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read augment .*Use none, views:K .* or live"):
        Augment.parse(text)


def test_augment_without_views_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"asked for 0 views of each image\. Use 1 or more"):
        Augment.parse("views:0")
    with pytest.raises(ConfigError, match=r"augment live has no number of views\. Use views:3"):
        Augment("live", 3)


def test_plain_pictures_have_no_view_seed() -> None:
    assert Augment().view_seed(0, "a", 3) is None


def test_fixed_views_take_turns_and_live_views_never_return() -> None:
    fixed = [Augment("views", 3).view_seed(0, "a", epoch) for epoch in range(9)]
    assert fixed[:3] * 3 == fixed
    assert len(set(fixed)) == 3
    live = [Augment("live").view_seed(0, "a", epoch) for epoch in range(9)]
    assert len(set(live)) == 9
    assert live[:3] == fixed[:3]


def test_view_seed_is_the_same_on_every_machine() -> None:
    assert Augment("live").view_seed(7, "ants/1.jpg", 2) == 3999015964406216201
    assert Augment("live").view_seed(7, "ants/2.jpg", 2) != Augment("live").view_seed(
        8, "ants/2.jpg", 2
    )


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    samples = []
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "x.png"
        noise(60 + label, 50).save(path)
        samples.append(Sample(path, label))
    return ImageSet(("a", "b"), tuple(samples))


def test_plain_sample_is_what_preprocessing_makes_of_it(images: ImageSet) -> None:
    data = ImageDataset(images, SMALL)
    tensor, label = data[1]
    assert label == 1
    assert torch.equal(tensor, SMALL(noise(61, 50)))
    assert torch.equal(data.load(1, 5)[0], tensor)
    assert len(data) == 2
    assert data.classes == ("a", "b")
    assert data.labels == (0, 1)
    assert data.names == tuple(str(sample.path) for sample in images.samples)


def test_sample_shows_the_view_of_its_epoch(images: ImageSet) -> None:
    data = ImageDataset(images, SMALL, augment=Augment("views", 2), seed=3)
    seed = data.view_seed(0, 1)
    assert seed is not None
    assert torch.equal(data.load(0, 1)[0], view(noise(60, 50), SMALL, seed=seed))
    assert torch.equal(data.load(0, 1)[0], data.load(0, 3)[0])
    assert not torch.equal(data.load(0, 0)[0], data.load(0, 1)[0])
    assert torch.equal(data[0][0], data.load(0, 0)[0])
    assert data.view_seed(0, 1) != data.view_seed(1, 1)


def test_file_that_breaks_later_is_named(images: ImageSet) -> None:
    data = ImageDataset(images, SMALL)
    images.samples[1].path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"b/x\.png: it has zero bytes"):
        data[1]


def test_views_stay_when_the_set_moves(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder({"a": 5, "b": 5})
    before = ImageDataset(read_splits(root).train, SMALL, augment=Augment("live"))
    moved = root.rename(tmp_path / "moved")
    after = ImageDataset(read_splits(moved).train, SMALL, augment=Augment("live"))
    assert [before.view_seed(i, 1) for i in range(8)] == [after.view_seed(i, 1) for i in range(8)]
