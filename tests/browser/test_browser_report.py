"""Reports in a real browser: silent, no request, no wider than a phone, hostile names inert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frostline.reports.comparing import compare_runs
from report_world import HOSTILE_CLASSES, HOSTILE_FILE, World
from small_world import write_picture

PHONE, DESKTOP = 390, 1280
LOOKED_AT = """
return {
  title: document.title,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  scripts: document.scripts.length,
  images: [...document.images].every(i => i.complete && i.naturalWidth > 0),
  handlers: [...document.querySelectorAll('*')].filter(
    e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
  charts: document.querySelectorAll('svg[role=img]').length,
  named: [...document.querySelectorAll('svg[role=img]')].every(s => s.ariaLabel),
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on hostile names of classes and files, some of them very long."""
    world = World(tmp_path_factory.mktemp("world"), names=HOSTILE_CLASSES)
    for part in ("train", "val"):
        for name, level in zip(HOSTILE_CLASSES, (50, 200), strict=True):
            write_picture(world.photos / part / name / HOSTILE_FILE, level)
            write_picture(world.photos / part / name / f"{'long' * 50}.png", level)
    return world.run("<img src=x onerror=\"document.title='ran'\">")


@pytest.fixture(params=[PHONE, DESKTOP])
def sized(quiet_browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The browser with a page of that width; a window itself is never narrower than 500."""
    metrics = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    quiet_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield quiet_browser
    quiet_browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def looked_at(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    return browser.execute_script(LOOKED_AT)


def test_a_report_is_silent_fits_and_runs_no_hostile_name(sized: Any, run: Path) -> None:
    found = looked_at(sized, run / "report.html")
    assert found["wide"] <= 0
    assert found["scripts"] == found["handlers"] == 0
    assert found["title"].endswith("Frostline report")
    assert found["images"]
    assert found["named"]
    assert found["charts"] == 4


def test_a_broken_promise_is_the_first_thing_seen(sized: Any, run: Path, tmp_path: Path) -> None:
    from frostline.runs import open_run

    broken = Path(shutil.copytree(run, tmp_path / "run"))
    digests = json.loads((broken / "frozen.json").read_text())["tensors"]
    name = next(iter(digests))
    digests[name] = digests[name][::-1]
    (broken / "frozen.json").write_text(json.dumps({"tensors": digests}))
    open_run(broken).report().save(broken / "report.html")
    sized.get((broken / "report.html").as_uri())
    top = "return document.querySelector('.promise.broken h2').getBoundingClientRect().top"
    assert sized.execute_script(top) < 300


def test_the_page_of_an_evaluation_is_silent_and_fits(
    sized: Any, run: Path, tmp_path: Path
) -> None:
    from frostline.runs import open_run

    opened = open_run(run)
    opened.judge(opened.held_out(run.parent / "photos" / "train")).save(tmp_path / "page.html")
    found = looked_at(sized, tmp_path / "page.html")
    assert found["wide"] <= 0
    assert found["scripts"] == found["handlers"] == 0
    assert found["title"].endswith("Frostline evaluation")
    assert found["images"]
    assert found["charts"] == 1


def test_a_comparison_is_silent_and_fits(sized: Any, run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "<script>document.title='ran'<script>"))
    compare_runs([run, other]).save(tmp_path / "page.html")
    found = looked_at(sized, tmp_path / "page.html")
    assert found["wide"] <= 0
    assert found["scripts"] == found["handlers"] == 0
    assert found["title"].startswith("2 runs ")
    assert found["charts"] == 2
