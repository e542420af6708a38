"""Files that prove themselves and yet say what cannot be: each harms its own folder alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_rows import KEY, VALUES, assert_holds, fill, opened, row_id, row_ids, stored_numbers

from frostline import StoreError
from frostline.store import FeatureKey, FeatureStore, ValueSpec, stored_table
from frostline.store.catalogue import Catalogue
from frostline.store.manifest import Manifest, _checksum
from frostline.store.records import _checks, record_dtype
from frostline.store.row_index import row_keys

NUMBERS = range(6)
OTHER = FeatureKey({"prefix": "other"})

Change = Callable[[dict[str, Any]], object]


def sealed(folder: Path, change: Change) -> None:
    """Change a manifest so that its sum is right."""
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["checksum"]
    change(content)
    content["checksum"] = _checksum(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def put(*path: str | int, to: object) -> Change:
    def change(content: dict[str, Any]) -> None:
        found: Any = content
        for part in path[:-1]:
            found = found[part]
        found[path[-1]] = to

    return change


def without(name: str) -> Change:
    return lambda content: content.pop(name)


WRONG = {
    "parts no object": put("parts", to=["prefix"]),
    "parts empty": put("parts", to={}),
    "a part that is a number": put("parts", "prefix", to=3),
    "a part that is nested": put("parts", "prefix", to={"a": ["b"]}),
    "parts of another folder": put("parts", "prefix", to="another"),
    "no parts": without("parts"),
    "note is text": put("note", to="mine"),
    "note is nothing": put("note", to=None),
    "a note that is a list": put("note", "model", to=[1]),
    "no note": without("note"),
    "values no list": put("values", to={"0": 1}),
    "values empty": put("values", to=[]),
    "a value that is text": put("values", 0, to="map"),
    "a value without a name": put("values", 0, to={"shape": [2], "dtype": "float32"}),
    "a name twice": put("values", 1, "name", to="map"),
    "a name that is a number": put("values", 0, "name", to=1),
    "a shape that is text": put("values", 0, "shape", to="23"),
    "a size that is true": put("values", 0, "shape", to=[True, 3]),
    "a size that is no whole number": put("values", 0, "shape", to=[2.0, 3]),
    "a size below 0": put("values", 0, "shape", to=[-2, 3]),
    "a size beyond any disk": put("values", 0, "shape", to=[10**30, 3]),
    "too many dimensions": put("values", 0, "shape", to=[1] * 100),
    "an unknown dtype": put("values", 0, "dtype", to="float8"),
    "a dtype that is a list": put("values", 0, "dtype", to=["float32"]),
    "an unknown storage": put("values", 0, "stored", to="int4"),
    "integers kept as halves": put("values", 3, "stored", to="float16"),
    "another type for other programs": put("values", 0, "numpy", to="<f8"),
    "a further field": put("values", 0, "more", to=1),
    "version true": put("version", to=True),
    "version text": put("version", to="1"),
}


HALF = '{"checksum": "", "format": "frostline features", "version": 1, "note": "\\ud800"}'


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    fill(FeatureStore(root).open(KEY, VALUES, note={"model": "net"}), NUMBERS)
    fill(FeatureStore(root).open(OTHER, VALUES), NUMBERS)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "store")
    return tmp_path / "store"


def listed(root: Path) -> str:
    return " ".join(str(stored_table(FeatureStore(root).ls())).split())


def assert_harms_itself_alone(root: Path) -> None:
    """The other key is whole, this one is named, found again by its key, and can be pruned."""
    store = FeatureStore(root)
    found = {entry.digest: entry for entry in store.ls()}
    assert len(found) == 2
    assert "is not what was written" in found[KEY.digest].damage
    assert found[OTHER.digest].rows == len(NUMBERS)
    assert "Opening the store for writing with the same key" in listed(root)
    (damage,) = store.verify()
    assert damage.folder == root / KEY.digest
    store.explain_miss(FeatureKey({"prefix": "third"}))
    assert_holds(opened(root), NUMBERS)  # by the key, whose records prove themselves
    fill(store.open(FeatureKey({"prefix": "third"}), VALUES), NUMBERS)
    assert [entry.digest for entry in store.prune(damaged=True)] == [KEY.digest]
    assert len(store.ls()) == 2


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_manifest_whose_sum_is_right_and_whose_content_cannot_be_is_damaged(
    root: Path, change: Change
) -> None:
    sealed(root / KEY.digest, change)
    assert_harms_itself_alone(root)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "[]",
        "3",
        "null",
        '"x"',
        "9" * 10_000,
        "{} " * (2 << 20),
        HALF,
    ],
    ids=["lists", "objects", "list", "number", "null", "text", "digits", "long", "half"],
)
def test_a_manifest_that_is_no_object_or_too_much_of_one_is_damaged(root: Path, text: str) -> None:
    (root / KEY.digest / "manifest.json").write_text(text)
    assert_harms_itself_alone(root)


def test_a_manifest_that_is_a_folder_harms_no_other_key(root: Path) -> None:
    (root / KEY.digest / "manifest.json").unlink()
    (root / KEY.digest / "manifest.json").mkdir()
    store = FeatureStore(root)
    assert sum(bool(entry.damage) for entry in store.ls()) == 1
    assert len(store.verify()) == 1
    assert_holds(store.open(OTHER, VALUES), NUMBERS)
    assert len(store.prune(damaged=True)) == 1


def test_a_long_note_is_listed_in_an_instant(root: Path) -> None:
    def lengthen(content: dict[str, Any]) -> None:
        content["note"] = {"model": "x" * 10**6, **{str(i): "y" for i in range(1000)}}

    sealed(root / KEY.digest, lengthen)
    start = time.process_time()
    table = str(stored_table(FeatureStore(root).ls()))
    assert time.process_time() - start < 2  # it took 10 s
    assert "x…" in table.replace("\n", "")
    assert "and 981 more" in " ".join(table.split())


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    features = FeatureStore(tmp_path).open(KEY, VALUES, note={"model": "x" * (5 << 20)})
    with pytest.raises(StoreError, match=r"take more than .* MB\. Put hashes into the key"):
        fill(features, NUMBERS)


def test_a_value_beyond_any_disk_is_refused() -> None:
    with pytest.raises(StoreError, match=r"more than 1e\+12 numbers\. Keep a smaller value"):
        ValueSpec("map", (None, 10**7, 10**7), torch.float32)


def test_a_time_of_no_calendar_is_listed(root: Path) -> None:
    entries = [replace(entry, used_at=1e18) for entry in FeatureStore(root).ls()]
    assert "unknown" in str(stored_table(entries))


def forge(segment: Path, number: int, *, offset: int, length: int) -> None:
    """Let a sound record speak of another place and length of its ragged value."""
    identity = Manifest(KEY, VALUES, {}).identity
    raw = bytearray((segment / "rows").read_bytes())
    records = np.frombuffer(raw, dtype=record_dtype(VALUES))
    records["offset1"][number] = offset
    records["lengths1"][number] = length
    records["check"] = _checks(records, identity, 0)
    (segment / "rows").write_bytes(raw)


PLACES = [
    (0, 2**63),
    (2**63, 2),
    (2**64 - 1, 2**64 - 1),
    (0, 2**60),
    (2**61, 2**61),
    (0, 2**38),
    (2**37, 1),
    (0, 10**6),
]


@pytest.mark.parametrize(("offset", "length"), PLACES)
def test_a_record_of_units_that_the_file_does_not_have_is_a_missing_row(
    root: Path, offset: int, length: int
) -> None:
    segment = next((root / KEY.digest).glob("segment-*"))
    forge(segment, 3, offset=offset, length=length)
    assert stored_numbers(opened(root), NUMBERS) == [0, 1, 2, 4, 5]
    store = FeatureStore(root)
    assert {damage.folder for damage in store.verify()} == {root / KEY.digest}
    fill(opened(root), NUMBERS)
    assert_holds(opened(root), NUMBERS)
    files = [path.stat() for path in (root / KEY.digest).rglob("*")]
    assert max(told.st_size for told in files) < 10**5
    assert store.verify() == ()


def test_a_long_row_without_bytes_is_not_believed(tmp_path: Path) -> None:
    values = (ValueSpec("tokens", (None, 0), torch.float32),)
    features = FeatureStore(tmp_path).open(OTHER, values)
    with features.writer() as writer:
        writer.put([row_id(0)], [[torch.zeros(3, 0)]])
    assert features.missing([row_id(0)]) == []
    assert features.read([row_id(0)]).gather(torch.tensor([0]))[0].shape == (1, 3, 0)
    (rows,) = features.path.glob("segment-*/rows")
    raw = bytearray(rows.read_bytes())
    records = np.frombuffer(raw, dtype=record_dtype(values))
    records["lengths0"] = 2**40
    records["check"] = _checks(records, Manifest(OTHER, values, {}).identity, 0)
    rows.write_bytes(raw)
    assert features.missing([row_id(0)]) == [0]


def test_a_row_of_many_bytes_is_checked_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frostline.store.catalogue.CHUNK_BYTES", 64)
    values = (ValueSpec("tokens", (None,), torch.float32),)
    features = FeatureStore(tmp_path).open(OTHER, values)
    kept = [torch.randn(n) for n in (3, 200, 1, 40, 0, 16, 17, 33)]
    with features.writer() as writer:
        writer.put(row_ids(range(8)), [kept])
    catalogue = Catalogue(features.path, Manifest(OTHER, values, {}))
    catalogue.refresh()
    assert catalogue.check(row_keys(row_ids(range(8)))) == []
    (file,) = features.path.glob("segment-*/value0.npy")
    raw = bytearray(file.read_bytes())
    raw[128 + 4 * 150] ^= 1  # in the long one
    file.write_bytes(raw)
    assert features.missing(row_ids(range(8))) == [1]
