"""A writer killed at any instant leaves complete rows complete, and the rest to be done again."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from made_rows import (
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

from frostline.store import FeatureStore, segments

NUMBERS = range(800)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing is for power cuts; a killed process loses nothing the system has."""
    monkeypatch.setattr(segments, "_FLUSH", lambda _: None)


def write_and_tell(root: Path, told: int) -> None:
    """Store what is missing; tell the number of each row once its `put` has returned."""
    with opened(root).writer() as writer:
        while positions := writer.claim(row_ids(NUMBERS), 5):
            writer.put(row_ids(positions), batch(positions))
            os.write(told, b"".join(n.to_bytes(2, "little") for n in positions))


def killed_in_write(root: Path, told: int, *, writes: int, seed: int) -> None:
    """As `write_and_tell`, but dies in a write, having written a random part of it."""
    left, real, chance = [writes], segments._write_at, random.Random(seed)

    def write_at(file: object, position: int, content: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raw = bytes(memoryview(content))  # type: ignore[arg-type]  # bytes or an array
            real(file, position, raw[: chance.randrange(len(raw) + 1)])  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)
        real(file, position, content)  # type: ignore[arg-type]

    segments._write_at = write_at  # in this child only
    write_and_tell(root, told)


def numbers_from(pipe: int) -> set[int]:
    with os.fdopen(pipe, "rb") as file:
        raw = file.read()
    return {int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw) - 1, 2)}


def test_a_writer_killed_50_times_loses_no_complete_row_and_ends_as_if_never_killed(
    tmp_path: Path,
) -> None:
    chance = random.Random(0)
    complete: set[int] = set()
    deaths = 0
    for attempt in range(50):
        ear, mouth = os.pipe()
        writes = chance.randrange(1, 40)
        child = in_child(
            lambda mouth=mouth, writes=writes, seed=attempt: killed_in_write(
                tmp_path / "killed", mouth, writes=writes, seed=seed
            )
        )
        os.close(mouth)
        complete |= numbers_from(ear)
        deaths += ended(child) == -signal.SIGKILL
        kept = stored_numbers(opened(tmp_path / "killed"), NUMBERS)
        assert complete <= set(kept)
        complete |= set(kept)
        assert_rows(opened(tmp_path / "killed").read(row_ids(kept)), kept)
    assert deaths == 50
    assert 0 < len(complete) < len(NUMBERS)  # else the kills would have come too late
    fill(opened(tmp_path / "killed"), NUMBERS)
    fill(opened(tmp_path / "calm"), NUMBERS)
    assert_holds(opened(tmp_path / "killed"), NUMBERS)
    assert FeatureStore(tmp_path / "killed").verify() == ()
    (killed,), (calm,) = (FeatureStore(tmp_path / name).ls() for name in ("killed", "calm"))
    assert killed.rows == calm.rows == len(NUMBERS)


def test_a_writer_killed_from_outside_loses_no_complete_row(tmp_path: Path) -> None:
    complete: set[int] = set()
    for wanted in (2, 30, 60, 100):
        ear, mouth = os.pipe()
        child = in_child(lambda mouth=mouth: write_and_tell(tmp_path, mouth))
        os.close(mouth)
        os.read(ear, wanted)  # it is at work
        os.kill(child, signal.SIGKILL)
        numbers_from(ear)
        assert ended(child) == -signal.SIGKILL
        kept = set(stored_numbers(opened(tmp_path), NUMBERS))
        assert complete < kept
        complete = kept
    fill(opened(tmp_path), NUMBERS)
    assert_holds(opened(tmp_path), NUMBERS)


def test_the_segment_of_a_killed_writer_is_gone_on_with(tmp_path: Path) -> None:
    for attempt in range(5):
        ear, mouth = os.pipe()
        child = in_child(
            lambda mouth=mouth, seed=attempt: killed_in_write(tmp_path, mouth, writes=20, seed=seed)
        )
        os.close(mouth)
        numbers_from(ear)
        assert ended(child) == -signal.SIGKILL
    fill(opened(tmp_path), NUMBERS)
    assert len(list(opened(tmp_path).path.glob("segment-*"))) == 1


def test_what_a_killed_writer_claimed_can_be_claimed_again(tmp_path: Path) -> None:
    def claim_and_die() -> None:
        with opened(tmp_path).writer() as writer:
            assert writer.claim(row_ids(range(9)), 9) == list(range(9))
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(in_child(claim_and_die)) == -signal.SIGKILL
    with opened(tmp_path).writer() as writer:
        assert writer.claim(row_ids(range(9)), 9) == list(range(9))
