"""The frame of a page: hostile text stays text, and nothing is allowed to be fetched."""

from __future__ import annotations

import json
import re

import pytest

from frostline.pages.rendering import render_page

HOSTILE = "</script><script>alert(1)</script><!-- & \u2028\u2029 é"


def embedded(page: str) -> str:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return found[1]


def test_hostile_data_comes_back_whole_and_never_as_markup() -> None:
    inside = embedded(render_page("frame.html", title="t", data={HOSTILE: HOSTILE}))
    assert not set(inside) & set("<>&\u2028\u2029")
    assert json.loads(inside) == {HOSTILE: HOSTILE}


def test_a_hostile_title_is_escaped() -> None:
    page = render_page("frame.html", title=HOSTILE, data=None)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_the_page_forbids_every_request() -> None:
    page = render_page("frame.html", title="t", data=None)
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_a_number_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        render_page("frame.html", title="t", data=float("nan"))
