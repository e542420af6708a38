"""No link of a page is dead, every page can be reached, and the reference leaves no name out."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
from page_world import BLOCK, DOCS, PAGES, ROOT, blocks_of

import frostline as fl
from frostline.cli import app

BESIDE = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "findings/README.md"]
BESIDE += ["src/frostline/cutting/README.md", "src/frostline/store/README.md"]
FILES = [*PAGES.values(), *(ROOT / name for name in BESIDE)]
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def prose(file: Path) -> str:
    return BLOCK.sub("", file.read_text(encoding="utf-8"))


@cache
def anchors(file: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(file), flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(file: Path) -> None:
    for target in (first or second for first, second in LINK.findall(prose(file))):
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            assert parts.scheme == "https", target
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
            continue
        path, _, anchor = target.partition("#")
        found = (file.parent / path).resolve() if path else file
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found), target


def test_the_site_names_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"(\S+\.md)(?: #.*)?$", nav, flags=re.MULTILINE))
    assert set(PAGES) - {"README.md"} <= named


def test_the_reference_has_every_public_name_once() -> None:
    shown = [name for page in (DOCS / "reference").glob("*.md") for name in names_on(page)]
    assert sorted(shown) == sorted(set(fl.__all__) - {"__version__"})
    table = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in table for name in shown)


def names_on(page: Path) -> list[str]:
    """Public names that a page of the reference documents, by name or by the class behind it."""
    text = page.read_text(encoding="utf-8")
    headed = re.findall(r"^::: (\S+)\n(?: +options:\n +heading: (\w+)$)?", text, re.MULTILINE)
    for home, name in headed:
        if name:
            value = getattr(fl, name)
            assert home.rpartition(".")[2] in (getattr(value, "__name__", ""), type(value).__name__)
    return [
        name or home.removeprefix("frostline.")
        for home, name in headed
        if name or home.count(".") == 1
    ]


def test_the_page_of_commands_has_every_verb() -> None:
    group: Any = typer.main.get_command(app)
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `frostline (\w+)", page, flags=re.MULTILINE)) == set(group.commands)


@pytest.mark.parametrize("page", PAGES)
def test_a_name_that_a_page_uses_is_public(page: str) -> None:
    for name in re.findall(r"\bfl\.(\w+)", PAGES[page].read_text(encoding="utf-8")):
        assert name in fl.__all__, name


def test_the_readme_is_read_in_two_minutes() -> None:
    """At 230 words a minute, with its loop in 20 lines, imports included."""
    words = re.sub(r"\(\S+\)|<[^>]+>|[|`*#-]+", " ", prose(PAGES["README.md"])).split()
    assert len(words) <= 460, len(words)
    (loop,) = (block.code for block in blocks_of("README.md") if block.language == "python")
    lines = [line for line in loop.splitlines() if line]
    assert len(lines) <= 20
