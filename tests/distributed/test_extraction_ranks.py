"""Several processes extract together: each row once, the bits of one process, all rows for all."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from extraction_world import (
    PICTURES,
    Found,
    Noise,
    Texts,
    all_begin,
    equal,
    extracted,
    killed_at,
    passes,
    rows_in_logs,
    until_killed,
)
from ranks import ends_of, on_ranks

import frostline as fl
from frostline.world import world_here


def _shared(root: Path, size: int) -> dict[str, Any]:
    """Empty store, full store, some new rows, texts; all in one group of processes."""
    samples = Noise(twice=10)
    with passes(all_begin(root, size)):
        first = extracted(samples, root / "store")
    return {
        "first": first,
        "loaded": samples.loaded,
        "again": extracted(Noise(twice=10), root / "store"),
        "more": extracted(Noise(PICTURES + 20), root / "store"),
        "texts": extracted(Texts(), root / "texts"),
        "views": 0,
    }


@pytest.mark.parametrize("size", [2, 3])
def test_processes_compute_each_row_once_to_the_bits_of_one(tmp_path: Path, size: int) -> None:
    (tmp_path / "ranks").mkdir()
    found = on_ranks(_shared, tmp_path / "ranks", size, size=size)
    alone = {
        "first": extracted(Noise(twice=10), tmp_path / "alone"),
        "texts": extracted(Texts(), tmp_path / "alone texts"),
        "more": extracted(Noise(PICTURES + 20), tmp_path / "alone"),
    }
    for name, own in alone.items():
        assert all(equal(one[name].values, own.values) for one in found), name
    counts = {"first": PICTURES, "again": 0, "more": 20, "texts": 90}
    for name, count in counts.items():
        parts = [one[name] for one in found]
        assert sum(part.passed for part in parts) == count, name
        assert {part.computed for part in parts} == {count}, name
        assert {part.computed_by for part in parts} == {tuple(part.passed for part in parts)}
    assert all(found[0]["first"].computed_by), "one process did it all"
    assert rows_in_logs(tmp_path / "ranks" / "store") == PICTURES + 20
    # To be known, to be computed, and a few to look at; nobody reads what another computes.
    assert sum(one["loaded"] for one in found) <= 2 * PICTURES + 10 + size * 8 + 40


def _killed(root: Path, rank: int, number: int) -> Found:
    is_killed = world_here("cpu").rank == rank
    with passes(killed_at(number, root) if is_killed else until_killed(root)):
        return extracted(Noise(), root / "store")


@pytest.mark.parametrize(("rank", "number"), [(0, 0), (1, 3), (2, 7)])
def test_rows_of_a_killed_process_are_computed_by_the_others(
    tmp_path: Path, rank: int, number: int
) -> None:
    ends = ends_of(_killed, tmp_path, rank, number, size=3)
    assert [end.status for end in ends] == [1 - 10 * (n == rank) for n in range(3)]
    others = [end.error for n, end in enumerate(ends) if n != rank]
    assert all("another of the 3 processes is gone" in error for error in others)
    assert rows_in_logs(tmp_path / "store") == PICTURES
    again, alone = extracted(Noise(), tmp_path / "store"), extracted(Noise(), tmp_path / "alone")
    assert again.computed == 0
    assert equal(again.values, alone.values)


def _decided(root: Path) -> tuple[Found, list[str], int]:
    """Features of both, the forms of their keys, and how often a form was chosen by trying."""
    rank, measured = world_here("cpu").rank, []
    computing = import_module("frostline.features.computing")
    plain = computing.tune_and_realise

    def tuned(*given: Any, **named: Any) -> Any:
        measured.append(rank)
        return plain(*given, **named)

    computing.tune_and_realise = tuned
    own = extracted(Noise(), root / f"store {rank}", precision="auto")
    forms = [entry.parts["form"] for entry in fl.FeatureStore(root / f"store {rank}").ls()]
    return own, forms, len(measured)


def test_the_form_is_measured_once_and_a_folder_is_filled_by_those_who_see_it(
    tmp_path: Path,
) -> None:
    found = on_ranks(_decided, tmp_path)
    (first, forms, measured), (second, other_forms, other_measured) = found
    assert (measured, other_measured) == (1, 0)
    assert forms == other_forms
    assert len(forms) == 1
    assert first.form == second.form
    assert forms[0] in first.form
    assert first.computed_by == second.computed_by == (PICTURES, PICTURES)
    assert equal(first.values, second.values)
    alone = extracted(Noise(), tmp_path / "alone", precision="auto")
    assert equal(first.values, alone.values)


def _at_address(root: Path) -> Found:
    """Each process as on a machine of its own: its local folder is nobody else's."""
    cache = root / f"machine {world_here('cpu').rank}"
    store = fl.FeatureStore(f"file://{root}/address", cache=cache)
    return extracted(Noise(), store)


def test_machines_that_share_an_address_divide_the_rows(tmp_path: Path) -> None:
    first, second = on_ranks(_at_address, tmp_path)
    assert first.computed_by == second.computed_by
    assert sum(first.computed_by) == PICTURES
    assert min(first.computed_by) > PICTURES // 3
    alone = extracted(Noise(), tmp_path / "alone")
    assert equal(first.values, alone.values)
    assert equal(second.values, alone.values)
