"""Several writers fill one store: each row is computed once, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from made_rows import VALUES, assert_holds, batch, claiming_child, ended, in_child, opened, row_ids

from frostline.store import FeatureStore, Writer, segments
from frostline.store.records import record_dtype


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_FLUSH", lambda _: None)


def fill_together(root: Path, numbers: range, told: int) -> None:
    """What every process does: claim, compute, put, and wait for the others' rows."""
    ids = row_ids(numbers)
    with opened(root).writer() as writer:
        while opened(root).missing(ids):
            if positions := writer.claim(ids, 4):
                some = [numbers[at] for at in positions]
                writer.put(row_ids(some), batch(some))
                os.write(told, b"".join(n.to_bytes(2, "little") for n in some))
            else:
                writer.wait(ids, 30)


def test_two_processes_compute_and_store_each_row_once(tmp_path: Path) -> None:
    numbers = range(200)
    ear, mouth = os.pipe()
    children = [in_child(lambda: fill_together(tmp_path, numbers, mouth)) for _ in range(2)]
    os.close(mouth)
    with os.fdopen(ear, "rb") as file:
        raw = file.read()
    assert [ended(child) for child in children] == [0, 0]
    computed = [int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw), 2)]
    assert sorted(computed) == list(numbers)
    logs = opened(tmp_path).path.glob("segment-*/rows")
    assert sum(path.stat().st_size for path in logs) == 200 * record_dtype(VALUES).itemsize
    assert_holds(opened(tmp_path), numbers)


def test_a_row_is_claimed_by_one_writer_only(tmp_path: Path) -> None:
    ids = row_ids(range(6))
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        assert one.claim(ids, 2) == [0, 1]
        assert two.claim(ids, 2) == [2, 3]
        assert one.claim(ids, 9) == [4, 5]
        assert two.claim(ids, 9) == []


def test_an_id_that_is_there_twice_is_claimed_once(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        assert writer.claim(row_ids([3, 3, 4, 3]), 9) == [0, 2]


def test_claims_end_with_their_writer(tmp_path: Path) -> None:
    ids = row_ids(range(3))
    with opened(tmp_path).writer() as two:
        with opened(tmp_path).writer() as one:
            one.claim(ids, 2)
            one.put(ids[:1], batch([0]))
            assert two.claim(ids, 9) == [2]
        assert two.claim(ids, 9) == [1]


def test_claims_of_a_segments_earlier_writer_do_not_count_for_the_next(tmp_path: Path) -> None:
    ids = row_ids(range(9))
    with opened(tmp_path).writer() as keeper:
        with opened(tmp_path).writer() as one:
            one.claim(ids, 4)
            one.put(ids[:1], batch([0]))
            assert keeper.claim(ids[:4], 9) == []
        with opened(tmp_path).writer() as next_one:
            assert next_one.claim(ids[4:], 9) == [0, 1, 2, 3, 4]
            assert keeper.claim(ids, 9) == [1, 2, 3]


def test_rows_another_writer_completed_are_not_claimed(tmp_path: Path) -> None:
    ids = row_ids(range(3))
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        assert two.claim(ids, 1) == [0]
        one.put(ids[1:], batch([1, 2]))
        assert two.claim(ids, 9) == []


def test_waiting_ends_when_the_others_rows_are_complete(tmp_path: Path) -> None:
    ids = row_ids(range(2))
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        one.claim(ids, 9)
        one.put(ids, batch(range(2)))
        assert _seconds_of_waiting(two, ids) < 5
        assert two.claim(ids, 9) == []


def test_waiting_ends_when_the_other_writer_is_killed(tmp_path: Path) -> None:
    ids = row_ids(range(2))
    child = claiming_child(tmp_path, ids)
    with opened(tmp_path).writer() as writer:
        assert writer.claim(ids, 9) == []
        writer.wait(ids, 0)  # still held
        assert writer.claim(ids, 9) == []
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        assert _seconds_of_waiting(writer, ids) < 5
        assert writer.claim(ids, 9) == [0, 1]


def test_waiting_does_not_wait_for_ones_own_claims(tmp_path: Path) -> None:
    ids = row_ids(range(2))
    with opened(tmp_path).writer() as writer:
        writer.claim(ids, 9)
        assert _seconds_of_waiting(writer, ids) < 5


def test_waiting_ends_at_its_timeout(tmp_path: Path) -> None:
    ids = row_ids(range(2))
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        one.claim(ids, 9)
        two.wait(ids, 0.05)
        assert two.claim(ids, 9) == []


def test_a_key_another_process_writes_is_not_pruned(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        writer.put(row_ids([1]), batch([1]))
        assert FeatureStore(tmp_path).prune(max_bytes=0) == ()
    assert len(FeatureStore(tmp_path).prune(max_bytes=0)) == 1


def test_a_key_can_be_opened_while_another_process_prunes_it_over_and_over(tmp_path: Path) -> None:
    def prune_until_told(ear: int) -> None:
        os.set_blocking(ear, False)
        store = FeatureStore(tmp_path)
        while True:
            store.prune(max_bytes=0)
            try:
                os.read(ear, 1)
            except BlockingIOError:
                continue
            return

    ear, mouth = os.pipe()
    child = in_child(lambda: prune_until_told(ear))
    for number in range(100):
        with opened(tmp_path).writer() as writer:
            writer.put(row_ids([number]), batch([number]))
            assert_holds(opened(tmp_path), [number])  # it is in use
    os.write(mouth, b"x")
    assert ended(child) == 0
    os.close(ear)
    os.close(mouth)


def _seconds_of_waiting(writer: Writer, ids: list[bytes]) -> float:
    start = time.monotonic()
    writer.wait(ids, 30)
    return time.monotonic() - start
