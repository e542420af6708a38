"""The page of forty networks shows the figures that were measured, and no others."""

from __future__ import annotations

import importlib
import json
import re
from types import ModuleType
from typing import Any

import pytest
from page_world import ROOT

PAGE = ROOT / "docs" / "networks.md"
RESULTS = ROOT / "benchmarks" / "results" / "networks.json"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("networks_page")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_page_shows_what_was_measured(tables: ModuleType, result: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert tables.with_tables(page, result) == page


def test_the_page_has_every_table(tables: ModuleType) -> None:
    marks = re.findall(r"<!-- networks\.py: (\w+) -->", PAGE.read_text(encoding="utf-8"))
    assert sorted(marks) == sorted(tables.PARTS)


def test_no_network_failed_and_those_not_measured_are_named(
    tables: ModuleType, result: dict[str, Any]
) -> None:
    assert len(result["listed"]) == 40
    assert not [name for name, found in result["networks"].items() if tables.FAILED in found]
    missing = [name for name in result["listed"] if name not in result["networks"]]
    said = f"Not measured yet: {', '.join(missing)}."
    assert (said in PAGE.read_text(encoding="utf-8")) == bool(missing)


def test_a_table_is_written_between_its_marks_and_nowhere_else(tables: ModuleType) -> None:
    page = "before\n<!-- networks.py: versions -->\nold\n<!-- end -->\nbehind\n"
    machines = {"a": "one machine", "b": "another", "c": "another"}
    networks = {name: {"machine": machine} for name, machine in machines.items()}
    found = tables.with_tables(page, {"versions": {"torch": "9.9"}, "networks": networks})
    begin = "before\n<!-- networks.py: versions -->\n\ntorch 9.9; another.\n\nOn one machine: a.\n"
    assert found.startswith(begin)
    assert found.endswith("\n<!-- end -->\nbehind\n")
    assert "old" not in found
