"""The folder is as its README says: others can read it, move it, and are told of other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash
from made_rows import KEY, VALUES, assert_holds, batch, fill, opened, row, row_id, row_ids
from mini_reader import canonical, read_key

from frostline import CorruptFeatures, StoreError
from frostline.store import FeatureStore
from frostline.store.layout import header
from frostline.store.manifest import read_manifest


def test_a_reader_written_from_the_readme_reads_every_row(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        one.put(row_ids(range(9)), batch(range(9)))
        two.put(row_ids(range(9, 20)), batch(range(9, 20)))
    found = read_key(opened(tmp_path).path)
    assert found.keys() == set(row_ids(range(20)))
    for number in range(20):
        for mine, wanted in zip(found[row_id(number)], row(number), strict=True):
            assert np.array_equal(mine, wanted.numpy())


def test_numpy_loads_the_data_files_at_any_time(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        (segment,) = opened(tmp_path).path.glob("segment-*")
        for count in range(4):
            loaded = [np.load(segment / f"value{k}.npy", mmap_mode="r") for k in range(4)]
            assert [a.shape for a in loaded] == [
                (count, 2, 3),
                (sum(range(count)), 4),
                (count, 8),
                (count,),
            ]
            assert [a.dtype.str for a in loaded] == ["<f4", "<u2", "|i1", "<i8"]
            writer.put(row_ids([count]), batch([count]))


def test_numpy_loads_the_files_of_a_mended_segment(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(8))
    (segment,) = opened(tmp_path).path.glob("segment-*")
    with (segment / "value0.npy").open("r+b") as file:
        file.truncate(150)
    with (segment / "value2.npy").open("ab") as file:
        file.write(b"of rows without a record")
    with opened(tmp_path).writer():
        assert np.load(segment / "value0.npy").shape == (8, 2, 3)
        assert (segment / "value2.npy").stat().st_size == 128 + 8 * 8
    assert opened(tmp_path).missing(row_ids(range(8))) == list(range(8))


def test_the_header_is_128_bytes_however_many_rows_there_are() -> None:
    for spec in VALUES:
        assert {len(header(spec, units)) for units in (0, 1, 10**6, 10**18)} == {128}


def test_notes_are_kept_for_people(tmp_path: Path) -> None:
    features = FeatureStore(tmp_path).open(KEY, VALUES, note={"model": "résumé-net"})
    fill(features, [1])
    assert FeatureStore(tmp_path).ls()[0].note == {"model": "résumé-net"}
    assert "résumé-net" in (features.path / "manifest.json").read_text(encoding="utf-8")


def test_a_manifest_reads_back_as_it_was(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    manifest = read_manifest(opened(tmp_path).path)
    assert manifest is not None
    assert (manifest.key, manifest.values) == (KEY, VALUES)


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_store_works_wherever_it_is_copied_or_moved(tmp_path: Path, move: object) -> None:
    fill(opened(tmp_path / "old"), range(8))
    move(tmp_path / "old", tmp_path / "new")  # type: ignore[operator]  # both take two paths
    assert_holds(opened(tmp_path / "new"), range(8))
    fill(opened(tmp_path / "new"), range(8, 12))
    assert_holds(opened(tmp_path / "new"), range(12))


def test_nothing_in_a_store_names_where_it_is(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(8))
    for path in opened(tmp_path).path.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("version", [0, 2])
def test_another_format_version_is_named_and_nothing_touched(tmp_path: Path, version: int) -> None:
    fill(opened(tmp_path), [1])
    folder = opened(tmp_path).path
    seal_again(folder, version=version)
    before = (folder / "manifest.json").read_bytes()
    words = rf"is of format version {version}; this Frostline reads version 1\. Use the Frostline"
    with pytest.raises(StoreError, match=words) as caught:
        opened(tmp_path)
    assert not isinstance(caught.value, CorruptFeatures)
    (stored,) = FeatureStore(tmp_path).ls()
    assert f"format version {version}" in stored.damage
    assert (folder / "manifest.json").read_bytes() == before


def test_a_folder_of_another_version_can_be_pruned(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    seal_again(opened(tmp_path).path, version=0)
    assert len(FeatureStore(tmp_path).prune(damaged=True)) == 1
    fill(opened(tmp_path), [1])
    assert_holds(opened(tmp_path), [1])


def seal_again(folder: Path, *, version: int) -> None:
    """Make the manifest one that another version could have written."""
    content = json.loads((folder / "manifest.json").read_text())
    content["version"] = version
    del content["checksum"]
    content["checksum"] = xxhash.xxh3_128_hexdigest(canonical(content))
    (folder / "manifest.json").write_text(json.dumps(content))
