"""docs/sweeps.md: its Python runs, its commands are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from frostline.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_its_python_runs() -> None:
    names: dict[str, Any] = {"__name__": "sweeps"}
    for code in blocks("python"):
        exec(compile(code, "sweeps.md", "exec"), names)
    assert len(names["found"].members) == 8
    assert names["found"].run.model is names["model"]


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_a_command_is_understood(line: str) -> None:
    _, verb, *arguments = shlex.split(line)
    group: Any = typer.main.get_command(app)
    with group.get_command(None, verb).make_context(verb, arguments) as context:
        assert context.params["model"]
