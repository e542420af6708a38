"""The store against a dictionary: whatever is done to it, it never gives a row that is wrong."""

from __future__ import annotations

import random
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from made_rows import assert_rows, batch, files_of, opened, row_ids, stored_numbers

from frostline.store import FeatureStore, StoredRows, Writer, segments

NUMBERS = range(24)
SOME = st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=8)


class StoreMachine(RuleBasedStateMachine):
    """A row's content follows from its number, so a set of numbers is the dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.root = self.place / "0"
        self.stored: set[int] = set()
        self.lost: set[int] = set()  # by damage
        self.writers: list[tuple[Writer, ExitStack]] = []
        self.claimed: dict[int, int] = {}
        self.held: list[tuple[StoredRows, list[int]]] = []

    def teardown(self) -> None:
        while self.writers:
            self.close_writer(0)
        shutil.rmtree(self.place)

    @precondition(lambda self: len(self.writers) < 3)
    @rule()
    def open_writer(self) -> None:
        stack = ExitStack()
        self.writers.append((stack.enter_context(opened(self.root).writer()), stack))
        # It brings files of a segment to their lengths, with zeros: where these were cut off, a
        # row is what its checksum says again.
        back = self.lost.intersection(stored_numbers(opened(self.root), NUMBERS))
        self.stored |= back
        self.lost -= back

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2))
    def close_writer(self, which: int) -> None:
        writer, stack = self.writers.pop(which % len(self.writers))
        stack.close()
        self.claimed = {n: owner for n, owner in self.claimed.items() if owner != id(writer)}

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2), numbers=SOME)
    def put(self, which: int, numbers: list[int]) -> None:
        writer, _ = self.writers[which % len(self.writers)]
        writer.put(row_ids(numbers), batch(numbers))
        self.stored |= set(numbers)

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2), numbers=SOME, limit=st.integers(1, 8))
    def claim(self, which: int, numbers: list[int], limit: int) -> None:
        writer, _ = self.writers[which % len(self.writers)]
        free = [n for n in dict.fromkeys(numbers) if n not in self.stored | self.claimed.keys()]
        got = [numbers[at] for at in writer.claim(row_ids(numbers), limit)]
        assert got == free[:limit]
        self.claimed |= dict.fromkeys(got, id(writer))

    @rule(numbers=SOME)
    def hold(self, numbers: list[int]) -> None:
        known = [n for n in numbers if n in self.stored]
        self.held.append((opened(self.root).read(row_ids(known)), known))

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @precondition(lambda self: not self.writers and self.root.exists())
    @rule(seed=st.integers(0, 2**32), harm=st.sampled_from(["flip", "cut", "delete", "append"]))
    def damage(self, seed: int, harm: str) -> None:
        self.held.clear()  # their maps would change under them
        chance = random.Random(seed)
        files = [path for path in files_of(self.root) if path.stat().st_size]
        if files:
            _harm(chance.choice(files), harm, chance)
        left = set(stored_numbers(opened(self.root), NUMBERS))
        assert left <= self.stored
        self.lost |= self.stored - left
        self.stored = left

    @precondition(lambda self: not self.writers)
    @rule()
    def prune(self) -> None:
        in_use = any(numbers for _, numbers in self.held)
        FeatureStore(self.root).prune(max_bytes=0)
        if not in_use:
            left = set(stored_numbers(opened(self.root), NUMBERS))
            assert not left or self.held
            self.stored = left
            self.lost.clear()

    @precondition(lambda self: not self.writers and self.root.exists())
    @rule()
    def move(self) -> None:
        self.root = self.root.rename(self.place / str(int(self.root.name) + 1))

    @invariant()
    def what_is_stored_is_complete_and_right(self) -> None:
        assert set(stored_numbers(opened(self.root), NUMBERS)) == self.stored
        numbers = sorted(self.stored)
        assert_rows(opened(self.root).read(row_ids(numbers)), numbers)

    @invariant()
    def what_was_read_stays_right(self) -> None:
        for rows, numbers in self.held:
            assert_rows(rows, numbers)


def test_a_store_behaves_as_a_dictionary_whatever_is_done_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "_FLUSH", lambda _: None)  # for speed
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis has no types here
        StoreMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_row_whose_zeros_were_cut_off_is_back_when_a_writer_opens() -> None:
    state = StoreMachine()
    state.open_writer()
    state.put(0, [0])
    state.close_writer(0)
    state.damage(0, "cut")  # a header and the zeros behind it
    assert (state.stored, state.lost) == (set(), {0})
    state.open_writer()
    assert state.stored == {0}
    state.what_is_stored_is_complete_and_right()
    state.teardown()


def _harm(path: Path, harm: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
        return
    if harm == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif harm == "cut":
        del content[chance.randrange(len(content)) :]
    else:
        content += chance.randbytes(chance.randrange(1, 100))
    path.write_bytes(content)
