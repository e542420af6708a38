"""The report of a very large run stays small, and its records do."""

from __future__ import annotations

from pathlib import Path

import pytest
from many_records import write_records

from frostline.runs import open_run
from report_world import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("run"), samples=50_000, classes=1_000)


def test_the_report_of_50_000_images_is_under_5_mb(run: Path) -> None:
    made = open_run(run).report()
    made.save(run / "report.html")
    assert (run / "report.html").stat().st_size < 5_000_000
    page = Page(made.page)
    assert "50,000" in page.text
    assert "The other 970 classes" in page.text
    assert "Most often confused" in page.text
    assert not [lack for lack in made.records.lacks if "predictions" in lack]
    rows = sum(tag == "tr" for tag, _ in page.elements)
    assert rows < 4_000  # no cell for each of a million pairs


def test_predictions_of_50_000_images_take_some_80_bytes_each(run: Path) -> None:
    size = (run / "best" / "predictions.safetensors").stat().st_size
    assert size < 130 * 50_000
