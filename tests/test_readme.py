"""What the README shows works: its Python runs, its commands parse, its files exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from torch import nn
from torchvision.models import resnet18

import frostline as fl
from frostline.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> Iterator[str]:
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("frostline "):
                yield line.strip()


def test_there_is_something_to_check() -> None:
    assert blocks("python")
    assert len(list(commands())) >= 5


def test_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block, as a reader would try them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert names["loss"].item() > 0


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_in_the_readme_is_understood(line: str) -> None:
    _, verb, *arguments = shlex.split(line, comments=True)
    group: Any = typer.main.get_command(app)
    command = group.get_command(None, verb)
    assert command is not None, f"there is no verb {verb}"
    if isinstance(command, typer.core.TyperGroup):
        verb, *arguments = arguments
        command = command.get_command(None, verb)  # type: ignore[arg-type]  # no context needed
        assert command is not None, f"there is no verb {verb}"
    with command.make_context(verb, arguments) as context:
        assert context.params


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\b(scripts/\w+|\]\(([\w./]+)\))", README)))
)
def test_a_file_that_the_readme_names_exists(path: tuple[str, str]) -> None:
    assert (ROOT / (path[1] or path[0])).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bfl\.(\w+)", README))))
def test_a_name_that_the_readme_uses_is_public(name: str) -> None:
    assert name in fl.__all__


def selectors() -> list[str]:
    """The texts in the first column of the table of selectors."""
    table = README[README.index("## Selectors") :]
    cells = re.findall(r"^\| (`.+?`) \| ", table, flags=re.MULTILINE)
    return [text.replace("\\|", "|") for cell in cells for text in re.findall("`([^`]+)`", cell)]


class Shown(nn.Module):
    """A network that has whatever the README's selectors name."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.layer3 = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 1, 1)))
        self.conv5 = nn.Conv2d(1, 2, 1)
        self.a = nn.Linear(1, 1)
        self.b = nn.Linear(1, 1)


@pytest.mark.parametrize("text", [t for t in selectors() if t != "( )"])
def test_a_selector_in_the_readme_is_read(text: str) -> None:
    wanted = text.replace("a & b", "a & ~b")  # two parts of a network have nothing in common
    assert bool(fl.select(Shown(), wanted).names) == (text != "none")
