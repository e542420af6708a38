"""Less of a picture decoded: what is seen stays at its place; a full decoding keeps its bits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from frostline.choices import DecodingName
from frostline.data import (
    Augment,
    ImageDataset,
    ImageSamples,
    ImageSet,
    KeptFrames,
    Sample,
    open_image,
)
from frostline.data.decoding import decodings_of, scale_of, seen_of, worth_less
from frostline.data.image_sets import MaskFile
from frostline.data.images import decode_scaled
from frostline.data.kept import stamp_of
from frostline.errors import ImageError
from frostline.preprocessing import Preprocessing

SMALL = Preprocessing(resize=40, crop=(32, 24))
SQUEEZED = Preprocessing(resize=(30, 50), crop=(28, 28), interpolation="bicubic")
LESS: tuple[DecodingName, ...] = ("jpeg-crop", "jpeg-4x", "jpeg-2x")
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def photo(photos: Path) -> Image.Image:
    """A real one, of odd sizes, so that scaled ones have a part of a pixel left over."""
    with Image.open(sorted((photos / "train/ants").glob("*.jpg"))[3]) as image:
        return image.convert("RGB").crop((0, 0, 491, 333))


def pixels(path: Path, preprocessing: Preprocessing, decoding: DecodingName) -> NDArray[np.int64]:
    return np.asarray(seen_of(path, preprocessing, decoding=decoding)).astype(np.int64)


def plain(path: Path, preprocessing: Preprocessing) -> NDArray[np.int64]:
    return np.asarray(preprocessing.frame(open_image(path))).astype(np.int64)


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("a.jpg", {"quality": 92}),
    ("a.jpg", {"quality": 92, "progressive": True, "subsampling": 0}),
    ("a.png", {}),
    ("a.tif", {}),
    ("a.webp", {"quality": 90}),
]


@pytest.mark.parametrize("preprocessing", [SMALL, SQUEEZED])
@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_a_full_decoding_keeps_every_bit_and_a_part_hardly_moves_one(
    tmp_path: Path,
    photo: Image.Image,
    preprocessing: Preprocessing,
    name: str,
    options: dict[str, Any],
) -> None:
    path = tmp_path / name
    photo.save(path, **options)
    expected = plain(path, preprocessing)
    assert np.array_equal(pixels(path, preprocessing, "full"), expected)
    moved = np.abs(pixels(path, preprocessing, "jpeg-crop") - expected)
    assert moved.max() <= (1 if path.suffix == ".jpg" else 0)
    assert moved.mean() < 0.01


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(491, 333), (480, 320)])
def test_a_scaled_jpeg_shows_the_same_part_at_the_same_place(
    tmp_path: Path, photo: Image.Image, mode: str, orientation: int, size: tuple[int, int]
) -> None:
    """A shift by half a pixel would move it by twice as much, and a turn left out by far more."""
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[ORIENTATION] = orientation
    photo.crop((0, 0, *size)).convert(mode).save(path, quality=92, exif=exif)
    expected = plain(path, SMALL)
    assert np.abs(pixels(path, SMALL, "jpeg-4x") - expected).mean() < 0.5
    assert np.abs(pixels(path, SMALL, "jpeg-2x") - expected).mean() < 1.8


def test_a_jpeg_is_scaled_no_further_than_its_name_says() -> None:
    seen = [scale_of(SMALL, "jpeg-4x", (side, 2 * side)) for side in (319, 320, 639, 640, 1280)]
    assert seen == [1, 2, 2, 4, 8]
    assert scale_of(SMALL, "jpeg-2x", (320, 640)) == 4
    assert scale_of(SMALL, "jpeg-2x", (10_000, 20_000)) == 8
    assert scale_of(SMALL, "jpeg-crop", (10_000, 20_000)) == 1
    by_narrower = replace(SMALL, resize=(40, 160))  # of a picture that is squeezed
    assert scale_of(by_narrower, "jpeg-4x", (640, 640)) == 1


@pytest.mark.parametrize(
    "preprocessing", [replace(SMALL, interpolation="nearest"), replace(SMALL, crop=(64, 64))]
)
@pytest.mark.parametrize("decoding", LESS)
def test_what_is_no_mean_of_pixels_or_is_padded_is_decoded_in_full(
    tmp_path: Path, photo: Image.Image, preprocessing: Preprocessing, decoding: DecodingName
) -> None:
    path = tmp_path / "a.jpg"
    photo.save(path)
    expected = plain(path, preprocessing)
    assert np.array_equal(pixels(path, preprocessing, decoding), expected)


@pytest.mark.parametrize("decoding", LESS)
def test_a_small_picture_that_is_made_larger_is_decoded_in_full(
    tmp_path: Path, photo: Image.Image, decoding: DecodingName
) -> None:
    path = tmp_path / "a.jpg"
    photo.resize((30, 25)).save(path)
    assert np.array_equal(pixels(path, SMALL, decoding), plain(path, SMALL))


@pytest.mark.parametrize("decoding", LESS)
def test_a_truncated_jpeg_is_refused_for_the_same_reason(
    tmp_path: Path, photo: Image.Image, decoding: DecodingName
) -> None:
    stream = io.BytesIO()
    photo.save(stream, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(ImageError) as by_full:
        open_image(path)
    with pytest.raises(ImageError) as by_less:
        seen_of(path, SMALL, decoding=decoding)
    assert str(by_less.value) == str(by_full.value)


def saved(folder: Path, photo: Image.Image, sides: list[int], suffix: str = ".jpg") -> list[Path]:
    paths = [folder / f"{number}{suffix}" for number in range(len(sides))]
    for path, side in zip(paths, sides, strict=True):
        photo.resize((side, side)).save(path)
    return paths


def test_a_few_large_pictures_are_to_be_tried_evenly(tmp_path: Path, photo: Image.Image) -> None:
    paths = saved(tmp_path, photo, [200] * 40)
    assert worth_less(paths, SMALL, 4) == [0, 10, 20, 30]


def test_pictures_that_are_no_jpegs_are_decoded_in_full(tmp_path: Path, photo: Image.Image) -> None:
    paths = saved(tmp_path, photo, [200] * 4, ".png")
    assert worth_less(paths, SMALL, 4) == []
    for decoding in LESS:
        assert np.array_equal(pixels(paths[0], SMALL, decoding), plain(paths[0], SMALL))


@pytest.mark.parametrize("sides", [[100] * 20, [200, *[100] * 19], []])
def test_where_few_pixels_are_of_large_pictures_nothing_is_tried(
    tmp_path: Path, photo: Image.Image, sides: list[int]
) -> None:
    assert worth_less(saved(tmp_path, photo, sides), SMALL, 4) == []


def test_large_pictures_are_found_among_small_and_broken_ones(
    tmp_path: Path, photo: Image.Image
) -> None:
    paths = saved(tmp_path, photo, [60, 200] * 4)
    paths[3].write_bytes(b"no picture")
    assert worth_less(paths, SMALL, 8) == [1, 5, 7]


def test_only_decodings_that_differ_are_tried(tmp_path: Path, photo: Image.Image) -> None:
    assert decodings_of(saved(tmp_path, photo, [300]), SMALL) == ("jpeg-2x", "jpeg-crop")
    assert decodings_of(saved(tmp_path, photo, [400]), SMALL) == ("jpeg-2x", "jpeg-4x", "jpeg-crop")
    assert decodings_of(saved(tmp_path, photo, [2600]), SMALL) == ("jpeg-4x", "jpeg-crop")


def test_what_was_kept_of_most_pictures_is_tried_before_what_is_quicker(
    tmp_path: Path, photo: Image.Image
) -> None:
    paths = saved(tmp_path, photo, [400] * 5)
    kept = KeptFrames(SMALL, decoding="jpeg-4x")
    samples = ImageSamples(ImageDataset(picture_set(paths), SMALL, kept=kept))
    tried = []
    for path in paths[:3]:
        tried.append(samples.decodings([0, 1]))
        found = decode_scaled(path, None, kept.scaling)
        kept.keep(path, stamp_of(path.stat()), found)
    tried.append(samples.decodings([0, 1]))
    assert tried == [("jpeg-2x", "jpeg-4x", "jpeg-crop")] * 3 + [("jpeg-4x", "jpeg-crop")]


def picture_set(paths: list[Path], target: MaskFile | None = None) -> ImageSet:
    return ImageSet(("a", "b"), tuple(Sample(path, 0, target) for path in paths))


def test_samples_that_are_decoded_less_say_so_and_give_other_pixels(
    tmp_path: Path, photo: Image.Image
) -> None:
    data = ImageDataset(picture_set(saved(tmp_path, photo, [400] * 2)), SMALL)
    samples = ImageSamples(data)
    less = samples.decoded("jpeg-2x")
    assert less.transform == samples.transform + ", jpeg-2x"
    assert not torch.equal(less.load(0), samples.load(0))
    assert torch.equal(less.decoded("full").load(0), samples.load(0))
    assert less.ids([0, 1]) == samples.ids([0, 1])


def test_pictures_that_were_begun_are_handed_out_by_the_decoding_that_they_were_begun_in(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageDataset(picture_set(saved(tmp_path, photo, [400] * 3)), SMALL)
    expected = [ImageSamples(data).decoded("jpeg-4x").load(row) for row in range(3)]
    samples = ImageSamples(data)
    samples.begin("jpeg-4x")
    begun = samples.decoded("jpeg-4x")
    assert begun._ahead is not None
    begun._ahead._pool.shutdown(wait=True)
    with monkeypatch.context() as patch:
        patch.setattr("frostline.data.views.seen_of", None)  # nothing is decoded again
        assert all(torch.equal(begun.load(row), one) for row, one in enumerate(expected))
    samples.end()
    assert torch.equal(begun.load(0), expected[0])


def test_pictures_that_were_begun_in_vain_are_let_go(tmp_path: Path, photo: Image.Image) -> None:
    data = ImageDataset(picture_set(saved(tmp_path, photo, [400] * 3)), SMALL)
    samples = ImageSamples(data)
    for decoding in ("jpeg-crop", "full"):
        samples.begin("jpeg-4x")
        begun = samples.decoded("jpeg-4x")
        assert samples.read_anew().decoded(decoding)._ahead is None
        assert begun._ahead is not None
        samples.decoded(decoding)
        assert begun._ahead is None


class OwnSteps(Preprocessing):
    """Transforms of someone's own."""

    __slots__ = ()

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.to_tensor(self.frame(image)).flip(2)


def test_views_masks_and_steps_of_ones_own_are_decoded_in_full(
    tmp_path: Path, photo: Image.Image
) -> None:
    paths = saved(tmp_path, photo, [400] * 4)
    photo.resize((400, 400)).convert("L").save(tmp_path / "mask.png")
    shown = picture_set(paths)
    masked = picture_set(paths, MaskFile(tmp_path / "mask.png"))
    for data in (
        ImageDataset(shown, SMALL, augment=Augment("views", 2)),
        ImageDataset(masked, SMALL),
        ImageDataset(shown, OwnSteps(resize=40, crop=(32, 24))),
    ):
        samples = ImageSamples(data)
        assert samples.worth_less(4) == []
        assert samples.decoded("jpeg-2x") is samples
    own = ImageDataset(shown, OwnSteps(resize=40, crop=(32, 24)), decoding="jpeg-2x")
    assert torch.equal(own.picture(0, 0), SMALL(open_image(paths[0])).flip(2))
