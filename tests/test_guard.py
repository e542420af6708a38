"""The guard of the benchmarks, on made-up numbers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("guard")


def verdict(guard: ModuleType, before: list[float], now: list[float]) -> bool:
    (found,) = guard.judged([guard.Ratio("a/b", tuple(before))], [guard.Ratio("a/b", tuple(now))])
    return bool(found.has_fallen)


@pytest.mark.parametrize(
    ("before", "now", "fallen"),
    [
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], True),
        ([1.0, 1.0, 1.0], [0.8, 0.8, 0.8], False),
        ([1.0, 1.0, 1.0], [1.04, 1.04, 1.04], False),  # less than counts
        ([0.9, 1.0, 1.1], [1.15, 1.15, 1.15], False),  # within the noise of before
        ([1.0, 1.0, 1.0], [1.0, 1.15, 1.3], False),  # within the noise of now
        ([0.95, 1.0, 1.05], [1.25, 1.3, 1.35], True),  # beyond both
        ([10.0, 10.0, 11.0], [12.0, 12.0, 12.0], True),  # a share, no number
        ([1.0, 1.0, 5.0], [2.0, 2.0, 2.0], False),  # nothing can be told of such noise
    ],
)
def test_a_ratio_has_fallen_by_more_than_the_noise_of_both(
    guard: ModuleType, before: list[float], now: list[float], fallen: bool
) -> None:
    assert verdict(guard, before, now) is fallen


def test_a_fallen_ratio_is_named_and_the_status_is_1(
    guard: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [guard.Ratio("warm/cold", (1.0, 1.0)), guard.Ratio("b/c", (1.0, 1.0))]
    now = [guard.Ratio("warm/cold", (1.5, 1.5)), guard.Ratio("b/c", (1.0, 1.0))]
    assert guard.told(guard.judged(before, now), guard.missing(before, now)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["FELL", "holds"]
    assert "+50.0%" in lines[1]
    assert guard.told(guard.judged(before, before), []) == 0


def test_a_ratio_that_is_not_measured_any_more_is_no_good_news(
    guard: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [guard.Ratio("a/b", (1.0,)), guard.Ratio("gone", (1.0,))]
    now = [guard.Ratio("a/b", (1.0,)), guard.Ratio("new", (9.0,))]
    assert guard.told(guard.judged(before, now), guard.missing(before, now)) == 1
    assert "gone was committed, and not measured" in capsys.readouterr().out


def test_what_is_written_is_read_again(guard: ModuleType) -> None:
    text = json.dumps({"ratios": {"a/b": [1.0, 2.0]}, "machine": "this"})
    assert guard.read(text) == [guard.Ratio("a/b", (1.0, 2.0))]
