"""Pictures that were found sound are not decoded to be checked again; all else is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline.data import Audit, SoundPictures, audit, read_splits
from frostline.data import sound as sound_module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five pictures each: JPEG, PNG, WebP, grey of 16 bits, TIFF."""
    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        folder = tmp_path / "set" / label
        folder.mkdir(parents=True)
        for name in ("0.jpg", "1.png", "2.webp", "4.tif"):
            noise = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name)
        Image.fromarray(draw.integers(0, 4000, (20, 30)).astype(np.uint16)).save(folder / "3.png")
    return tmp_path / "set"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded to be checked."""
    module = sys.modules["frostline.data.audit"]
    names, plain = list[str](), module.look

    def noted(file, *arguments):  # type: ignore[no-untyped-def] # as given
        names.append(Path(file.name).name)
        return plain(file, *arguments)

    monkeypatch.setattr(module, "look", noted)
    return names


def audited(root: Path, file: Path) -> Audit:
    return audit(read_splits(root), bad_images="skip", sound=SoundPictures(file))


def test_a_second_audit_finds_the_same_and_decodes_what_may_be_odd_alone(
    root: Path, tmp_path: Path, looked_at: list[str]
) -> None:
    first = audited(root, tmp_path / "sound.txt")
    assert len(looked_at) == 10
    looked_at.clear()
    second = audited(root, tmp_path / "sound.txt")
    assert sorted(looked_at) == ["3.png", "3.png", "4.tif", "4.tif"]
    assert (second.findings, second.digests, second.levels) == (
        first.findings,
        first.digests,
        first.levels,
    )


def test_a_file_that_breaks_later_is_found(
    root: Path, tmp_path: Path, looked_at: list[str]
) -> None:
    audited(root, tmp_path / "sound.txt")
    looked_at.clear()
    broken = root / "a" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    found = audited(root, tmp_path / "sound.txt")
    assert "0.jpg" in looked_at
    assert "1 image cannot be read" in found.findings[0].message
    looked_at.clear()
    assert "1 image cannot be read" in audited(root, tmp_path / "sound.txt").findings[0].message


def test_a_sound_picture_under_another_name_is_not_decoded_again(
    root: Path, tmp_path: Path, looked_at: list[str]
) -> None:
    audited(root, tmp_path / "sound.txt")
    looked_at.clear()
    (root / "a" / "0.jpg").rename(root / "a" / "9.jpg")
    audited(root, tmp_path / "sound.txt")
    assert "9.jpg" not in looked_at


@pytest.mark.parametrize("damage", ["gone", "cut", "other reader", "no text"])
def test_a_file_that_is_not_ours_costs_one_more_reading(
    root: Path,
    tmp_path: Path,
    looked_at: list[str],
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "sound.txt"
    audited(root, file)
    looked_at.clear()
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-70] + file.read_bytes()[-40:])
    elif damage == "no text":
        file.write_bytes(b"\xff\xfe\x00")
    else:
        monkeypatch.setattr(sound_module.PIL, "__version__", "0.1")
    audited(root, file)
    assert len(looked_at) == 10
    looked_at.clear()
    audited(root, file)
    assert len(looked_at) == 4


def test_where_nothing_can_be_written_the_audit_goes_on(root: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert len(audited(root, tmp_path / "taken" / "sound.txt").digests) == 10
