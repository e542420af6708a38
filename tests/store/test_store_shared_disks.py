"""Disks that several machines share: rows are right whatever their locks are worth."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from made_rows import (
    VALUES,
    assert_holds,
    batch,
    claiming_child,
    ended,
    files_of,
    fill,
    in_child,
    opened,
    row_ids,
    stored_numbers,
)
from torch import Tensor

from frostline import OutputError
from frostline.store import FeatureStore, segments, writing
from frostline.store.layout import HOME
from frostline.store.records import record_dtype

NUMBERS = range(120)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_FLUSH", lambda _: None)


def live_on(patch: pytest.MonkeyPatch, machine: str) -> None:
    patch.setattr(writing, "home_of", lambda _: machine)


def grant_every_lock(patch: pytest.MonkeyPatch) -> None:
    """As where each machine has locks of its own: whoever asks for one gets it."""
    patch.setattr("frostline._files._lock_handle", lambda *_: True)


def refuse_every_lock(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    patch.setattr("fcntl.flock", refuse)


def on_machine(
    name: str, locks: Callable[[pytest.MonkeyPatch], None], work: Callable[[], None]
) -> int:
    def there() -> None:
        patch = pytest.MonkeyPatch()
        live_on(patch, name)
        locks(patch)
        work()

    return in_child(there)


def fill_in_sessions(root: Path, seed: int, told: int) -> None:
    """Store all rows in an order of its own, a few in each writer; tell each once it is stored."""
    numbers = list(NUMBERS)
    random.Random(seed).shuffle(numbers)
    for first in range(0, len(numbers), 15):
        with opened(root).writer() as writer:
            for start in range(first, first + 15, 5):
                some = numbers[start : start + 5]
                writer.put(row_ids(some), batch(some))
                os.write(told, b"".join(n.to_bytes(2, "little") for n in some))


@pytest.mark.parametrize("locks", [grant_every_lock, refuse_every_lock])
def test_machines_that_do_not_see_each_others_locks_lose_and_mix_no_row(
    tmp_path: Path, locks: Callable[[pytest.MonkeyPatch], None]
) -> None:
    ear, mouth = os.pipe()

    def fill_and_stay() -> None:
        fill_in_sessions(tmp_path, 0, mouth)
        signal.pause()

    machines = [on_machine("0", locks, fill_and_stay)]
    machines += [
        on_machine(str(n), locks, partial(fill_in_sessions, tmp_path, n, mouth)) for n in (1, 2)
    ]
    os.close(mouth)
    raw = os.read(ear, 2)
    os.kill(machines[0], signal.SIGKILL)
    with os.fdopen(ear, "rb") as file:
        raw += file.read()
    assert [ended(child) for child in machines] == [-signal.SIGKILL, 0, 0]
    stored = {int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw), 2)}
    assert stored == set(NUMBERS)
    assert_holds(opened(tmp_path), NUMBERS)
    assert FeatureStore(tmp_path).verify() == ()


def test_a_segment_of_another_machine_is_never_written(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        live_on(patch, "another")
        fill(opened(tmp_path), range(5))
    (segment,) = opened(tmp_path).path.glob("segment-*")
    before = {path: path.read_bytes() for path in files_of(segment)}
    fill(opened(tmp_path), range(3, 9))
    assert {path: path.read_bytes() for path in files_of(segment)} == before
    assert len(list(opened(tmp_path).path.glob("segment-*"))) == 2
    assert_holds(opened(tmp_path), range(9))


def test_a_segment_that_does_not_say_where_its_writers_live_is_never_written(
    tmp_path: Path,
) -> None:
    fill(opened(tmp_path), range(5))
    (segment,) = opened(tmp_path).path.glob("segment-*")
    (segment / HOME).unlink()
    size = (segment / "rows").stat().st_size
    fill(opened(tmp_path), range(5, 9))
    assert (segment / "rows").stat().st_size == size == 5 * record_dtype(VALUES).itemsize
    assert_holds(opened(tmp_path), range(9))


def test_a_writer_goes_on_with_the_segment_of_its_own_machine(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(5))
    fill(opened(tmp_path), range(5, 9))
    assert len(list(opened(tmp_path).path.glob("segment-*"))) == 1


@pytest.mark.parametrize("times", [1, 200])
def test_rows_of_as_many_machines_as_a_batch_has_rows_are_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    for number in range(12):
        live_on(monkeypatch, str(number // 2))
        fill(opened(tmp_path), [number])
    rows = opened(tmp_path).read(row_ids(range(12)))
    order = torch.randperm(12).repeat(times)
    found, wanted = rows.gather(order), batch(order.tolist()[:12])
    for value, each in zip(found, wanted, strict=True):
        if isinstance(each, Tensor):
            assert torch.equal(value, torch.cat([each] * times))


def test_claims_of_a_machine_whose_locks_are_not_seen_count_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = row_ids(range(8))
    grant_every_lock(monkeypatch)
    live_on(monkeypatch, "one")
    with opened(tmp_path).writer() as one:
        live_on(monkeypatch, "two")
        with opened(tmp_path).writer() as two:
            assert one.claim(ids, 3) == [0, 1, 2]
            assert two.claim(ids, 3) == [3, 4, 5]
            assert one.claim(ids, 9) == [6, 7]
            monkeypatch.setattr(segments, "SILENT_SECONDS", 0.0)
            assert two.claim(ids, 9) == [0, 1, 2, 6, 7]


def test_claims_of_another_machine_end_at_once_with_a_writer_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = row_ids(range(4))
    grant_every_lock(monkeypatch)
    live_on(monkeypatch, "one")
    with opened(tmp_path).writer() as one:
        with pytest.MonkeyPatch.context() as patch:
            live_on(patch, "two")
            with opened(tmp_path).writer() as two:
                two.claim(ids, 4)
                two.put(ids[:1], batch([0]))
                assert one.claim(ids, 9) == []
        assert one.claim(ids, 9) == [1, 2, 3]


def test_claims_of_the_same_machine_end_with_its_lock_however_recent(tmp_path: Path) -> None:
    ids = row_ids(range(4))
    child = claiming_child(tmp_path, ids)
    with opened(tmp_path).writer() as writer:
        assert writer.claim(ids, 9) == []
        os.kill(child, signal.SIGKILL)
        ended(child)
        assert writer.claim(ids, 9) == [0, 1, 2, 3]


def test_the_file_of_claims_is_closed_when_the_turn_ends(tmp_path: Path) -> None:
    """NFS shows it to others once the file is closed."""
    with opened(tmp_path).writer() as writer:
        writer.claim(row_ids(range(4)), 9)
        (segment,) = opened(tmp_path).path.glob("segment-*")
        found = open_paths()
        assert str(segment / "rows") in found
        assert str(segment / "claims") not in found


def test_the_locks_of_a_removed_key_are_let_go_before_its_files_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a file that is open under another name, and its folder could not be deleted."""
    fill(opened(tmp_path), range(4))
    deleted, unlink = [], Path.unlink

    def look_and_unlink(path: Path, missing_ok: bool = False) -> None:
        assert str(path) not in open_paths()
        deleted.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", look_and_unlink)
    assert len(FeatureStore(tmp_path).prune(max_bytes=0)) == 1
    with opened(tmp_path).writer():  # leaves no row behind
        pass
    assert {"in-use.lock", "writer.lock"} <= set(deleted)


def test_without_locks_no_key_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(opened(tmp_path), range(4))
    refuse_every_lock(monkeypatch)
    with pytest.raises(OutputError, match="No locks available"):
        FeatureStore(tmp_path).prune(max_bytes=0)
    assert stored_numbers(opened(tmp_path), range(4)) == list(range(4))


def open_paths() -> set[str]:
    """Of all files that this process has open."""
    found = set()
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of the listing itself
            found.add(str(handle.readlink()))
    return found
