"""Damage is found or harmless: no damaged feature is ever used, and what is lost is made anew."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest
import torch
from made_rows import (
    KEY,
    VALUES,
    assert_holds,
    assert_rows,
    batch,
    files_of,
    fill,
    opened,
    row_id,
    row_ids,
    stored_numbers,
)

from frostline import CorruptFeatures, StoreError
from frostline.store import FeatureStore, ValueSpec
from frostline.store.catalogue import CHUNK_BYTES

NUMBERS = range(12)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two segments, which tests copy."""
    root = tmp_path_factory.mktemp("pristine")
    with opened(root).writer() as one, opened(root).writer() as two:
        one.put(row_ids(NUMBERS[:6]), batch(NUMBERS[:6]))
        two.put(row_ids(NUMBERS[6:]), batch(NUMBERS[6:]))
    return root


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "store")
    return tmp_path / "store"


def flip(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    bit = chance.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name} flipped"


def truncate(path: Path, chance: random.Random) -> str:
    size = chance.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(size)
    return f"{path.name} cut to {size} bytes"


def delete(path: Path, _: random.Random) -> str:
    path.unlink()
    return f"{path.name} deleted"


def segment_of(root: Path) -> Path:
    return sorted(opened(root).path.glob("segment-*"))[0]


def test_of_200_flips_and_truncations_each_is_found_or_harmless(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frostline.store.segments._FLUSH", lambda _: None)  # for speed
    chance = random.Random(0)
    harms: list[Callable[[Path, random.Random], str]] = [flip, flip, truncate, delete]
    lost = 0
    for trial in range(200):
        root = tmp_path / str(trial)
        shutil.copytree(pristine, root)
        path = chance.choice([path for path in files_of(root) if path.stat().st_size])
        harm = harms[trial % 4](path, chance)
        kept = stored_numbers(opened(root), NUMBERS)
        assert_rows(opened(root).read(row_ids(kept)), kept)
        lost += len(NUMBERS) - len(kept)
        if len(kept) < len(NUMBERS) and harm.endswith("flipped"):
            assert FeatureStore(root).verify(), harm
        fill(opened(root), NUMBERS)
        assert_holds(opened(root), NUMBERS)
        left = [d for d in FeatureStore(root).verify() if "other programs" not in d.what]
        assert left == [], harm
        shutil.rmtree(root)
    assert lost > 200  # the harm was real


def test_reading_a_damaged_row_names_it_and_what_to_do(copy: Path) -> None:
    _flip_last_byte(segment_of(copy) / "value2.npy")
    lost = next(iter(set(NUMBERS) - set(stored_numbers(opened(copy), NUMBERS))))
    words = rf"1 of 12 rows in .* first is row {row_id(lost).hex()}, value 'scaled' in segment-"
    with pytest.raises(CorruptFeatures, match=words) as caught:
        opened(copy).read(row_ids(NUMBERS))
    assert "Compute them anew: `missing` names them" in str(caught.value)
    assert caught.value.exit_status == 3


def test_rows_beside_a_damaged_one_can_be_read(copy: Path) -> None:
    _flip_last_byte(segment_of(copy) / "value2.npy")
    kept = stored_numbers(opened(copy), NUMBERS)
    assert len(kept) == 11
    assert_rows(opened(copy).read(row_ids(kept)), kept)


def test_a_damaged_row_is_claimed_and_its_new_record_wins(copy: Path) -> None:
    _flip_last_byte(segment_of(copy) / "value0.npy")
    (lost,) = set(NUMBERS) - set(stored_numbers(opened(copy), NUMBERS))
    with opened(copy).writer() as writer:
        assert writer.claim(row_ids(NUMBERS), 12) == [lost]
    fill(opened(copy), NUMBERS)
    assert_holds(opened(copy), NUMBERS)
    assert FeatureStore(copy).verify() == ()


def test_verify_names_folder_value_and_row(copy: Path) -> None:
    _flip_last_byte(segment_of(copy) / "value0.npy")
    (lost,) = set(NUMBERS) - set(stored_numbers(opened(copy), NUMBERS))
    (damage,) = FeatureStore(copy).verify()
    assert (damage.folder, damage.value) == (opened(copy).path, "map")
    assert damage.row_id == row_id(lost)
    assert str(damage) == (
        f"{damage.folder}, row {row_id(lost).hex()}, value 'map': its bytes in "
        f"{segment_of(copy).name} do not match their checksum"
    )


def test_verify_names_a_damaged_record(copy: Path) -> None:
    _flip_last_byte(segment_of(copy) / "rows")
    (damage,) = FeatureStore(copy).verify()
    assert damage.what == f"record 5 of {segment_of(copy).name} does not match its checksum"


def test_a_damaged_header_harms_no_row_and_verify_tells(copy: Path) -> None:
    with (segment_of(copy) / "value0.npy").open("r+b") as file:
        file.write(b"?" * 128)
    assert_holds(opened(copy), NUMBERS)
    (damage,) = FeatureStore(copy).verify()
    assert "value0.npy is not what was written; Frostline does not use it" in damage.what


def test_an_intact_store_has_no_damage(copy: Path) -> None:
    assert FeatureStore(copy).verify() == ()


def test_rows_larger_than_what_is_read_at_once_are_checked_beside_small_ones(
    tmp_path: Path,
) -> None:
    features = FeatureStore(tmp_path).open(KEY, [ValueSpec("x", (None,), torch.float32)])
    lengths = (1, 5 * CHUNK_BYTES // 8, 1, 1, CHUNK_BYTES // 4 + 1, 3 * CHUNK_BYTES // 4, 1)
    values = [torch.full((length,), float(at)) for at, length in enumerate(lengths)]
    with features.writer() as writer:
        writer.put(row_ids(range(len(values))), [values])
    assert FeatureStore(tmp_path).verify() == ()


@pytest.mark.parametrize("harm", [flip, truncate, delete])
def test_a_damaged_manifest_hides_no_row_from_its_key_and_is_written_anew(
    copy: Path, harm: Callable[[Path, random.Random], str]
) -> None:
    harm(opened(copy).path / "manifest.json", random.Random(1))
    assert_holds(opened(copy), NUMBERS)
    (stored,) = FeatureStore(copy).ls()
    (damage,) = FeatureStore(copy).verify()
    assert "with the same key repairs it; or delete the folder" in stored.damage
    assert "with the same key repairs it; or delete the folder" in damage.what
    with opened(copy).writer():
        pass
    assert FeatureStore(copy).verify() == ()
    assert FeatureStore(copy).ls()[0].parts == KEY.parts


def test_a_damaged_manifest_does_not_let_other_values_read_the_rows(copy: Path) -> None:
    (opened(copy).path / "manifest.json").unlink()
    other = FeatureStore(copy).open(KEY, VALUES[:1])
    assert other.missing(row_ids(NUMBERS)) == list(NUMBERS)


def test_records_that_lie_at_another_place_are_not_believed(copy: Path) -> None:
    path = segment_of(copy) / "rows"
    content = path.read_bytes()
    size = len(content) // 6
    path.write_bytes(content[size:])
    assert len(stored_numbers(opened(copy), NUMBERS)) == 6


def test_an_unreadable_sector_is_a_damaged_row(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreadable(BufferedReader):
        def read(self, _: int | None = None, /) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("frostline.store.catalogue.BufferedReader", Unreadable)
    assert stored_numbers(opened(copy), NUMBERS) == []


def test_a_row_stored_twice_is_read_while_one_copy_is_intact(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        for writer in (one, two):
            writer.put(row_ids(NUMBERS), batch(NUMBERS))
    segments = sorted(opened(tmp_path).path.glob("segment-*"))
    assert len(segments) == 2
    for segment, name in zip(segments, ["value0.npy", "value2.npy"], strict=True):
        _flip_last_byte(segment / name)
    with (segments[1] / "value0.npy").open("r+b") as file:
        file.seek(128)
        file.write(b"damaged")
    assert_holds(opened(tmp_path), NUMBERS[:-1])
    assert FeatureStore(tmp_path).ls()[0].rows == 12


def test_a_map_that_the_system_refuses_is_a_store_error(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("frostline.store.reading._map", refuse)
    with pytest.raises(StoreError, match=r"cannot map the features .*Raise the limit on memory"):
        opened(copy).read(row_ids(NUMBERS))


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
