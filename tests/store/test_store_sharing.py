"""Writers share work in parts: each part is one live writer's, and free when that one ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from made_rows import batch, opened, row_ids

from frostline.store import SharedParts, Writer, segments


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_FLUSH", lambda _: None)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Writer, Writer]]:
    with ExitStack() as held:
        one, other = (held.enter_context(opened(tmp_path).writer()) for _ in range(2))
        yield one, other


def test_each_part_is_taken_once(two: tuple[Writer, Writer]) -> None:
    one, other = (SharedParts(writer, "work", 600) for writer in two)
    taken = []
    for mine, its in zip(one, other, strict=False):
        taken += [mine, its]
    assert sorted(taken) == list(range(600))
    assert one.of_others == other.of_others == 300


def test_parts_of_other_work_are_others(two: tuple[Writer, Writer]) -> None:
    assert next(iter(SharedParts(two[0], "work", 3))) == 0
    assert next(iter(SharedParts(two[1], "other work", 3))) == 0
    assert next(iter(SharedParts(two[1], "work", 3))) == 1


def test_parts_of_a_writer_that_ended_are_free_again(two: tuple[Writer, Writer]) -> None:
    one, other = (SharedParts(writer, "work", 5) for writer in two)
    taken = iter(one)
    assert [next(taken), next(taken)] == [0, 1]
    assert list(other) == [2, 3, 4]
    other.finish()
    assert other.wait(0) == "taken"
    two[0].close()
    assert other.wait(0) == "free"
    assert list(other) == [0, 1]
    other.finish()
    assert other.wait(0) == "done"


def test_waiting_ends_once_all_have_finished(two: tuple[Writer, Writer]) -> None:
    one, other = (SharedParts(writer, "work", 2) for writer in two)
    assert [next(iter(one)), next(iter(other))] == [0, 1]
    one.finish()
    assert one.wait(0.05) == "taken"
    other.finish()
    assert (one.wait(30), other.wait(30)) == ("done", "done")


def test_what_was_finished_stays_so_when_its_writer_ends(two: tuple[Writer, Writer]) -> None:
    one, other = (SharedParts(writer, "work", 2) for writer in two)
    assert [next(iter(one)), next(iter(other))] == [0, 1]
    one.finish()
    assert other.wait(0) == "taken"
    two[0].close()
    other.finish()
    assert other.wait(0) == "done"


def test_parts_are_no_rows(two: tuple[Writer, Writer], tmp_path: Path) -> None:
    ids = row_ids(range(3))
    parts = SharedParts(two[0], "work", 3)
    assert list(parts) == [0, 1, 2]
    assert two[1].claim(ids, 9) == [0, 1, 2]
    two[1].put(ids, batch(range(3)))
    parts.finish()
    assert opened(tmp_path).missing(ids) == []
    assert len(opened(tmp_path).read(ids)) == 3
