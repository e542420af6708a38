"""docs/promises.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "promises.md").read_text()
NAMED = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", PAGE)
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]


@pytest.mark.parametrize(("file", "function"), NAMED, ids=[":".join(pair) for pair in NAMED])
def test_a_named_test_is_there(file: str, function: str) -> None:
    assert f"def {function}" in (TESTS / file).read_text()


def test_each_promise_has_a_test() -> None:
    without = [row for row in ROWS if not row.endswith("| test |") and "test_" not in row]
    assert not without
