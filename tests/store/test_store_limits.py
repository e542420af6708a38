"""Full disks, file-size limits, folders that cannot be written, budgets and pruning."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from made_rows import (
    KEY,
    VALUES,
    assert_holds,
    assert_rows,
    batch,
    ended,
    fill,
    in_child,
    opened,
    row_ids,
    stored_numbers,
)

from frostline import OutputError, StoreError
from frostline.store import FeatureKey, Features, FeatureStore, ValueSpec, segments, stored_table
from frostline.store.records import record_dtype
from frostline.store.removal import folder_bytes

NUMBERS = range(200)


def key(number: int) -> FeatureKey:
    return FeatureKey({"prefix": "stem", "transform": f"crop {number}"})


def filled(store: FeatureStore, number: int, *, used_at: float | None = None) -> Features:
    features = store.open(key(number), VALUES, note={"key": str(number)})
    fill(features, range(20), batch_size=20)
    if used_at is not None:
        os.utime(features.path / "in-use.lock", (used_at, used_at))
    return features


@pytest.mark.parametrize("limit_bytes", [1500, 2100, 3000, 4096, 5001])
def test_a_file_size_limit_is_an_output_error_and_complete_rows_are_kept(
    tmp_path: Path, limit_bytes: int
) -> None:
    def fill_until_refused() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        with pytest.raises(OutputError, match=r"File too large\. Rows that were complete are kept"):
            fill(opened(tmp_path), NUMBERS)
        kept = stored_numbers(opened(tmp_path), NUMBERS)
        assert_rows(opened(tmp_path).read(row_ids(kept)), kept)

    assert ended(in_child(fill_until_refused)) == 0
    kept = stored_numbers(opened(tmp_path), NUMBERS)
    assert 0 < len(kept) < len(NUMBERS)
    assert FeatureStore(tmp_path).verify() == ()
    fill(opened(tmp_path), NUMBERS)
    assert_holds(opened(tmp_path), NUMBERS)


def test_a_full_disk_is_an_output_error_with_what_to_do_and_writing_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = segments._write_at

    def full(file: object, position: int, content: bytes) -> None:
        real(file, position, bytes(content)[: len(content) // 2])  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(tmp_path).writer() as writer:
        writer.put(row_ids(range(5)), batch(range(5)))
        for last in range(9):  # data, headers or records: wherever it stops
            with monkeypatch.context() as patch:
                left = iter([real] * last)
                patch.setattr(segments, "_write_at", lambda *a, n=left: next(n, full)(*a))
                with pytest.raises(OutputError, match="No space left on device") as caught:
                    writer.put(row_ids(range(5, 15)), batch(range(5, 15)))
            assert "fl.FeatureStore(...).prune" in str(caught.value)
            assert "it goes on where it stopped" in str(caught.value)
            assert set(range(5)) <= set(stored_numbers(opened(tmp_path), range(15)))
        writer.put(row_ids(range(5, 15)), batch(range(5, 15)))
    assert_holds(opened(tmp_path), range(15))
    assert FeatureStore(tmp_path).verify() == ()


@pytest.mark.parametrize("goes_on", [True, False])
def test_rows_whose_records_got_through_before_the_disk_was_full_are_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, goes_on: bool
) -> None:
    real, writes = segments._write_at, []

    def full_at_the_records(file: object, position: int, content: bytes) -> None:
        writes.append(position)
        if len(writes) < 9:  # four values, four headers
            real(file, position, content)  # type: ignore[arg-type]
            return
        real(file, position, content[: len(content) // 2 + 3])  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(tmp_path).writer() as writer:
        with monkeypatch.context() as patch:
            patch.setattr(segments, "_write_at", full_at_the_records)
            with pytest.raises(OutputError, match="No space left on device"):
                writer.put(row_ids(range(10)), batch(range(10)))
        assert stored_numbers(opened(tmp_path), range(10)) == list(range(5))
        (log,) = opened(tmp_path).path.glob("segment-*/rows")
        assert log.stat().st_size == 5 * record_dtype(VALUES).itemsize  # the torn one is gone
        if goes_on:
            writer.put(row_ids(range(20, 30)), batch(range(20, 30)))
            assert_holds(opened(tmp_path), [*range(5), *range(20, 30)])
    assert FeatureStore(tmp_path).verify() == ()
    fill(opened(tmp_path), range(30))
    assert_holds(opened(tmp_path), range(30))
    assert FeatureStore(tmp_path).verify() == ()


def test_data_are_flushed_before_the_records_that_vouch_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        segments, "_FLUSH", lambda f: flushed.append(Path(f"/proc/self/fd/{f}").readlink().name)
    )
    fill(opened(tmp_path), range(3))
    assert flushed == ["value0.npy", "value1.npy", "value2.npy", "value3.npy", "rows"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to write refuses, as on a mount for reading; permissions do not stop root."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    real_open = os.open

    def open_to_read(path: object, flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return real_open(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_to_read)
    for name in ("mkdir", "utime", "rename", "replace", "unlink", "remove", "truncate"):
        monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("gone", ["nothing", "in-use.lock", "manifest.json"])
def test_complete_rows_can_be_read_where_nothing_can_be_written(
    tmp_path: Path, request: pytest.FixtureRequest, gone: str
) -> None:
    fill(opened(tmp_path), range(9))
    (opened(tmp_path).path / gone).unlink(missing_ok=True)
    request.getfixturevalue("read_only")
    assert_holds(opened(tmp_path), range(9))
    store = FeatureStore(tmp_path)
    assert len(store.ls()) == 1
    assert len(store.verify()) == (gone == "manifest.json")


def test_writing_where_nothing_can_be_written_is_an_output_error(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fill(opened(tmp_path), range(9))
    request.getfixturevalue("read_only")
    with (
        pytest.raises(OutputError, match=r"Read-only file system.* choose a folder you can write"),
        opened(tmp_path).writer(),
    ):
        pass
    with pytest.raises(OutputError, match=r"cannot remove .*Read-only file system\. Delete it by"):
        FeatureStore(tmp_path).prune(max_bytes=0)


def test_a_file_system_without_locks_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fill(opened(tmp_path), range(9))
    monkeypatch.setattr("fcntl.flock", refuse)
    assert_holds(opened(tmp_path), range(9))


@pytest.mark.usefixtures("permissions_hold")
def test_a_folder_without_permission_can_be_read(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(9))
    folders = [opened(tmp_path).path, *opened(tmp_path).path.glob("segment-*")]
    for folder in folders:
        for path in folder.iterdir():
            path.chmod(0o555 if path.is_dir() else 0o444)
        folder.chmod(0o555)
    assert_holds(opened(tmp_path), range(9))
    with pytest.raises(OutputError, match="Permission denied"), opened(tmp_path).writer():
        pass
    for folder in folders:
        folder.chmod(0o755)


def test_a_root_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    features = opened(tmp_path / "file")
    assert features.missing(row_ids([1])) == [0]
    with pytest.raises(OutputError, match="cannot write features to"), features.writer():
        pass


def test_a_budget_removes_the_least_recently_used_key_first(tmp_path: Path) -> None:
    free = FeatureStore(tmp_path)
    filled(free, 1, used_at=1000)
    filled(free, 2, used_at=500)
    one_key = free.ls()[0].nbytes
    filled(FeatureStore(tmp_path, budget_bytes=2 * one_key + one_key // 2), 3)
    assert {stored.note["key"] for stored in free.ls()} == {"1", "3"}
    assert_holds(free.open(key(3), VALUES), range(20))


def test_reading_a_key_saves_it_from_the_budget(tmp_path: Path) -> None:
    free = FeatureStore(tmp_path)
    filled(free, 1, used_at=500)
    filled(free, 2, used_at=1000)
    free.open(key(1), VALUES).read(row_ids(range(20)))
    filled(FeatureStore(tmp_path, budget_bytes=free.ls()[0].nbytes * 5 // 2), 3)
    assert {stored.note["key"] for stored in free.ls()} == {"1", "3"}


def test_a_key_in_use_is_never_removed_and_the_budget_says_what_is_needed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    rows = filled(store, 1, used_at=500).read(row_ids(range(20)))
    small = FeatureStore(tmp_path, budget_bytes=store.ls()[0].nbytes + 100)
    words = r"would hold .* KB, and its budget is .* KB; nothing else in it can be removed\. Rows"
    with pytest.raises(StoreError, match=words) as caught:
        filled(small, 2)
    assert "Raise the budget" in str(caught.value)
    assert_rows(rows, range(20))
    del rows
    filled(small, 2)
    assert [stored.note["key"] for stored in store.ls()] == ["2"]


def test_rows_within_the_budget_are_kept_when_it_is_reached(tmp_path: Path) -> None:
    features = opened(tmp_path, budget_bytes=6000)
    with pytest.raises(StoreError, match="budget"):
        fill(features, NUMBERS)
    kept = stored_numbers(features, NUMBERS)
    assert 0 < len(kept) < len(NUMBERS)
    assert_rows(features.read(row_ids(kept)), kept)
    assert folder_bytes(tmp_path) <= 6000 + 400  # manifest, claims and headers come on top


def test_pruning_by_age_removes_what_was_not_used_since(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    filled(store, 1, used_at=time.time() - 100)
    filled(store, 2, used_at=time.time() - 1000)
    (gone,) = store.prune(older_than_seconds=500)
    assert gone.note == {"key": "2"}
    assert [stored.note["key"] for stored in store.ls()] == ["1"]


def test_pruning_to_a_size_removes_the_least_recently_used_first_and_keeps_what_it_is_told(
    tmp_path: Path,
) -> None:
    store = FeatureStore(tmp_path)
    for number in range(4):
        filled(store, number, used_at=1000 + number)
    size = store.ls()[0].nbytes
    gone = store.prune(max_bytes=2 * size, keep=[key(0).digest])
    assert [stored.note["key"] for stored in gone] == ["1", "2"]


def test_pruning_damaged_keys_leaves_the_intact(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    filled(store, 1)
    path = next(filled(store, 2).path.glob("segment-*/value0.npy"))
    path.write_bytes(path.read_bytes()[:-1])
    assert [stored.note["key"] for stored in store.prune(damaged=True)] == ["2"]
    assert [stored.note["key"] for stored in store.ls()] == ["1"]


def test_pruning_without_a_limit_removes_nothing(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    filled(store, 1)
    assert store.prune() == ()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    filled(FeatureStore(tmp_path), 1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    FeatureStore(tmp_path).prune(max_bytes=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "photos"]


def test_a_removal_that_was_cut_short_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path)
    filled(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr("frostline.store.removal._clear", lambda _: True)
        store.prune(max_bytes=0)
    assert store.ls() == ()
    assert len(list(tmp_path.iterdir())) == 1
    store.prune()
    assert list(tmp_path.iterdir()) == []


def test_mapped_rows_outlive_the_removal_of_their_files(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    rows = filled(store, 1).read(row_ids(range(20)))
    shutil.rmtree(tmp_path / key(1).digest)
    assert_rows(rows, range(20))


def test_a_miss_names_the_parts_that_differ_from_the_nearest_key(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    assert store.explain_miss(KEY) == "nothing stored yet"
    fill(opened(tmp_path), [1])
    assert store.explain_miss(KEY) == "stored"
    fill(store.open(FeatureKey({"other": "key"}), VALUES), [1])
    near = FeatureKey({**KEY.parts, "transform": "crop 384", "storage": "int8"})
    assert store.explain_miss(near) == "transform: crop 224 -> crop 384; storage: none -> int8"


def test_a_miss_shows_where_long_parts_begin_to_differ(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    fill(store.open(FeatureKey({"graph": "a" * 99 + "b" * 99, "form": "x"}), VALUES), [1])
    line = store.explain_miss(FeatureKey({"graph": "a" * 99 + "c\n" + "d" * 99}))
    assert line == (f"graph: …{'a' * 8}{'b' * 24}… -> …{'a' * 8}c {'d' * 22}…; form: x -> none")


def test_the_table_shows_rows_bytes_and_what_is_damaged(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    filled(store, 1, used_at=1_000_000)
    (filled(store, 2).path / "manifest.json").unlink()
    shown = " ".join(str(stored_table(store.ls())).split())
    assert key(1).digest[:12] in shown
    assert "key: 1" in shown
    assert "the manifest is" in shown
    assert "2 keys" in shown


def test_memory_of_its_own_does_not_grow_with_the_features(tmp_path: Path) -> None:
    features = FeatureStore(tmp_path).open(KEY, [ValueSpec("x", (1 << 20,), torch.uint8)])
    with features.writer() as writer:
        for number in range(64):
            writer.put(row_ids([number]), [torch.full((1, 1 << 20), number, dtype=torch.uint8)])
    before = _own_bytes()
    rows = features.read(row_ids(range(64)))
    total = sum(int(rows.gather(torch.tensor([n]))[0][0, -1]) for n in range(64))
    assert total == sum(range(64))
    assert _own_bytes() - before < 24 << 20


def _own_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
