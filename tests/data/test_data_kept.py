"""Pictures that were decoded in full to be checked are not decoded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.data import (
    Audit,
    Augment,
    ImageDataset,
    ImageSamples,
    KeptFrames,
    audit,
    open_image,
    read_splits,
)
from frostline.data import views as views_module
from frostline.errors import ImageError
from frostline.preprocessing import Preprocessing

SMALL = Preprocessing(resize=20, crop=(16, 12))
NAMES = ("0.png", "1.tif", "2.webp", "3.jpg", "4.png", "5.png", "6.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of PNG, TIFF, WebP and JPEG; one turned, one transparent, one of 16 bits."""
    draw, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    for label in ("a", "b"):
        for number, name in enumerate(NAMES):
            path = tmp_path / "set" / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = draw.integers(0, 256, (40, 50, 4), dtype=np.uint8)
            image = Image.fromarray(noise)
            if number == 5:
                Image.fromarray(draw.integers(0, 60000, (40, 50)).astype(np.uint16)).save(path)
            elif number == 6:
                image.save(path)
            else:
                image.convert("RGB").save(path, exif=exif if number == 4 else Image.Exif())
    return tmp_path / "set"


def audited(root: Path, kept: KeptFrames | None) -> Audit:
    return audit(read_splits(root), bad_images="error", kept=kept)


def dataset(found: Audit, *, is_kept: bool = True) -> ImageDataset:
    return ImageDataset(
        found.splits.train,
        SMALL,
        digests=found.digests,
        levels=found.levels,
        kept=found.kept if is_kept else None,
    )


def test_what_an_audit_kept_has_the_bits_of_reading_again(root: Path) -> None:
    found = audited(root, kept := KeptFrames(SMALL))
    assert len(kept) == 12  # all but those of 16 bits
    data, plain = dataset(found), dataset(found, is_kept=False)
    for place in range(len(data)):
        assert torch.equal(data.picture(place, 0), plain.picture(place, 0)), data.names[place]
    assert len(kept) < 12


def test_what_was_kept_is_not_decoded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(audited(root, KeptFrames(SMALL)))
    read, plain = list[str](), views_module.seen_of

    def noted(path: Path, *arguments: object, **options: object) -> object:
        read.append(path.name)
        return plain(path, *arguments, **options)  # type: ignore[arg-type] # as given

    monkeypatch.setattr(views_module, "seen_of", noted)
    for place in range(len(data)):
        data.picture(place, 0)
    assert set(read) == {"5.png"}
    data.picture(0, 0)  # asked for again, as in a plain loop
    assert "0.png" in read


def test_a_file_that_changed_since_is_read_again(root: Path) -> None:
    data = dataset(audited(root, KeptFrames(SMALL)))
    path = data.images.samples[0].path
    Image.new("RGB", (50, 40), "red").save(path)
    assert torch.equal(data.picture(0, 0), SMALL(open_image(path)))
    gone = data.images.samples[1].path
    gone.unlink()
    with pytest.raises(ImageError, match="there is no such file"):
        data.picture(1, 0)


def test_random_views_and_other_steps_never_come_from_what_was_kept(root: Path) -> None:
    data = dataset(audited(root, KeptFrames(SMALL)))
    plain = replace(data, kept=None)
    viewed = Augment("views", 2)
    assert torch.equal(
        replace(data, augment=viewed).picture(0, 1), replace(plain, augment=viewed).picture(0, 1)
    )
    other = Preprocessing(resize=24, crop=(16, 12))
    assert torch.equal(
        replace(data, preprocessing=other).picture(0, 0),
        replace(plain, preprocessing=other).picture(0, 0),
    )


def test_no_more_is_kept_than_its_bytes_allow(root: Path) -> None:
    kept = KeptFrames(SMALL, most_bytes=3 * 3 * 16 * 12)
    found = audited(root, kept)
    assert len(kept) == 3
    assert len(found.digests) == 14


def test_a_broken_picture_is_found_and_not_kept(root: Path) -> None:
    broken = root / "a" / "0.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    kept = KeptFrames(SMALL)
    found = audit(read_splits(root), bad_images="skip", kept=kept)
    assert "1 image cannot be read" in found.findings[0].message
    assert kept.take(broken, "full") is None


def large_jpegs(root: Path) -> Path:
    """Four of each class, five times as large as `SMALL` sees them and not of whole blocks."""
    draw = np.random.default_rng(1)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(4):
            noise = draw.integers(0, 256, (101, 131, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{number}.jpg", quality=92)
    return root


def test_jpegs_are_kept_by_the_decoding_that_is_asked_for_later(tmp_path: Path) -> None:
    kept = KeptFrames(SMALL, decoding="jpeg-4x")
    found = audited(large_jpegs(tmp_path / "set"), kept)
    assert len(kept) == 8
    full = dataset(found)
    less, fresh = replace(full, decoding="jpeg-4x"), replace(full, decoding="jpeg-4x", kept=None)
    assert not torch.equal(full.picture(0, 0), fresh.picture(0, 0))
    assert len(kept) == 8  # for no other decoding
    assert torch.equal(full.picture(0, 0), replace(full, kept=None).picture(0, 0))
    assert torch.equal(less.picture(0, 0), fresh.picture(0, 0))
    assert len(kept) == 7


def test_a_truncated_jpeg_is_refused_in_the_same_words_by_every_decoding(tmp_path: Path) -> None:
    root = large_jpegs(tmp_path / "set")
    broken = root / "a" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-400])
    messages = set()
    for kept in (None, KeptFrames(SMALL), KeptFrames(SMALL, decoding="jpeg-4x")):
        messages.add(audit(read_splits(root), bad_images="skip", kept=kept).findings[0].message)
        if kept is not None:
            assert kept.take(broken, kept.decoding) is None
            assert len(kept) == 7
    assert len(messages) == 1
    assert "it is truncated" in messages.pop()


def test_what_was_kept_is_freed_with_the_pictures_that_it_is_of(root: Path) -> None:
    kept = KeptFrames(SMALL)
    found = audited(root, kept)
    ImageSamples(ImageDataset(found.splits.val, SMALL, kept=kept)).forget_kept()
    assert len(kept) == 12 - sum(sample.path.name != "5.png" for sample in found.splits.val.samples)
