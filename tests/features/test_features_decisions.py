"""What stands in a store's `forms.json` is taken only where it keeps the promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.features import Decisions
from frostline.tuning import Form, Tuned

GOOD = {
    "form": "bfloat16 folded",
    "error": 0.01,
    "batch_size": 32,
    "seconds_per_sample": 0.001,
    "plain_seconds_per_sample": None,
}
TRIAL = {"decoding": "jpeg-4x", "speedup": 2.0, "error": 0.01, "worst": 0.01}
SCALED = {**GOOD, "form": "bfloat16 folded jpeg-4x", "decodings": [TRIAL]}


def found(root: Path, text: str) -> Tuned | None:
    (root / "forms.json").write_text(text)
    return Decisions(root).find("name", tolerance=0.02)


def test_a_decision_is_found_again(tmp_path: Path) -> None:
    tuned = Tuned(Form("bfloat16"), 0.01, 64, (), 0.5, 1.0)
    Decisions(tmp_path).keep("name", tuned)
    Decisions(tmp_path).keep("other", Tuned(Form(), 0.0, 1))
    assert Decisions(tmp_path).find("name", tolerance=0.02) == tuned
    assert Decisions(tmp_path).find("name", tolerance=0.005) is None
    assert Decisions(tmp_path).find("unknown", tolerance=0.02) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": 5.0},
        {"error": -1.0},
        {"error": float("nan")},
        {"error": True},
        {"error": "0.01"},
        {"error": 10**400},
        {"batch_size": 0},
        {"batch_size": -3},
        {"batch_size": 10**9},
        {"batch_size": 2.5},
        {"batch_size": True},
        {"form": "float8"},
        {"form": None},
        {"form": ["float32"]},
        {"seconds_per_sample": "soon"},
        {"plain_seconds_per_sample": float("inf")},
    ],
)
def test_a_decision_out_of_range_is_made_again(tmp_path: Path, wrong: dict[str, object]) -> None:
    assert found(tmp_path, json.dumps({"name": GOOD})) is not None
    assert found(tmp_path, json.dumps({"name": {**GOOD, **wrong}})) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"decodings": []},
        {"decodings": [{**TRIAL, "decoding": "jpeg-crop"}]},
        {"decodings": [{**TRIAL, "worst": float("nan")}]},
        {"decodings": [{**TRIAL, "worst": 0.03}]},
        {"decodings": [{**TRIAL, "error": "small"}]},
        {"decodings": [{**TRIAL, "speedup": -1.0}]},
        {"decodings": [{"decoding": "jpeg-4x"}]},
        {"decodings": "jpeg-4x"},
        {"decodings": None},
        {"form": "bfloat16 jpeg-9x"},
    ],
)
def test_a_decision_on_decoding_out_of_range_is_made_again(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    assert found(tmp_path, json.dumps({"name": SCALED})) is not None
    assert found(tmp_path, json.dumps({"name": {**SCALED, **wrong}})) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"name": 3}', '{"name": {}}', "[" * 100_000, '{"name": ' * 100_000],
)
def test_a_file_that_is_none_of_decisions_is_written_anew(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, text) is None
    tuned = Tuned(Form("bfloat16"), 0.01, 64)
    Decisions(tmp_path).keep("name", tuned)
    assert Decisions(tmp_path).find("name", tolerance=0.02) == tuned


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    assert found(tmp_path, json.dumps({"name": GOOD}) + " " * (5 << 20)) is None
