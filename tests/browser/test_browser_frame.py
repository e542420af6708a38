"""The frame in a real browser: hostile text runs nothing and is read back whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.pages.rendering import render_page

HOSTILE = (
    "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
)


def test_hostile_text_runs_nothing(quiet_browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page("frame.html", title=HOSTILE, data=[HOSTILE]), encoding="utf-8")
    quiet_browser.get(page.as_uri())
    assert quiet_browser.title == HOSTILE
    read = "return JSON.parse(document.getElementById('data').textContent)"
    assert quiet_browser.execute_script(read) == [HOSTILE]


def test_a_request_would_be_seen(browser: Any, tmp_path: Path) -> None:
    """The watch itself can fail a page: one without the frame's ban asks for an image."""
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/a.png'>", encoding="utf-8")
    browser.get(page.as_uri())
    assert any("127.0.0.1:9/a.png" in entry["message"] for entry in browser.get_log("performance"))
