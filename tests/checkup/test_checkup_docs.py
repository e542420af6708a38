"""docs/doctor.md lists every code, with the levels that its findings have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkup_zoo import ZOO, told

import frostline as fl
from frostline.checkup import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
ROWS = dict(re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \| .+ \| .+ \|$", PAGE, re.MULTILINE))
ARGUMENTS = re.search(r"\| argument .+?\n\n", PAGE, re.DOTALL)


def test_the_table_lists_exactly_the_codes() -> None:
    assert sorted(ROWS) == sorted(CODES)


@pytest.mark.parametrize("name", ZOO)
def test_a_finding_has_a_level_that_the_table_gives_it(name: str) -> None:
    for finding in told(name):
        assert finding.level in ROWS[finding.code].split(", "), finding.code


def test_the_page_names_every_argument() -> None:
    from inspect import signature

    assert ARGUMENTS is not None
    assert set(signature(fl.doctor).parameters) - {"model"} <= set(
        re.findall(r"`(\w+)`", ARGUMENTS.group())
    )
