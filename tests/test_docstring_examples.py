"""Every public name has an example in its docstring, and what these show is what happens."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import frostline as fl

NAMES = [name for name in fl.__all__ if not name.startswith("_")]
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_of(value: object) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")


def run(examples: list[doctest.Example], names: dict[str, Any]) -> dict[str, Any]:
    """The names as the examples leave them."""
    failures: list[str] = []
    test = doctest.DocTest(examples, names, "example", None, None, None)
    doctest.DocTestRunner(optionflags=SAME).run(test, out=failures.append, clear_globs=False)
    assert not failures, "".join(failures)
    return test.globs


def set_up() -> dict[str, Any]:
    """The names that the examples go on from: those of the package's, up to `frozen`."""
    lines = examples_of(fl)
    last = next(n for n, line in enumerate(lines) if line.source.startswith("frozen = "))
    return run(lines[: last + 1], {})


def test_the_example_of_the_package_shows_what_happens() -> None:
    run(examples_of(fl), {})


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_name_shows_what_happens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = examples_of(getattr(fl, name))
    assert examples
    run(examples, set_up())
