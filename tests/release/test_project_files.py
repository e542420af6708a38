"""What stands around the package agrees with it: extras, citation, issue forms, the container."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import frostline

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FORMS = sorted(
    path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"
)
SHOWN = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
ASKS = re.compile(r"frostline\[([\w,]+)\]")


def asked_for() -> Iterator[tuple[str, str]]:
    """Each extra that a message, a page or the changelog says to install, and where."""
    files = [*(ROOT / "src").rglob("*.py"), *SHOWN, ROOT / "CHANGELOG.md", ROOT / "pyproject.toml"]
    for file in files:
        for names in ASKS.findall(file.read_text(encoding="utf-8")):
            yield from ((name, str(file.relative_to(ROOT))) for name in names.split(","))
    # The one message that takes the extra's name from whoever calls.
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r'\blibrary\("[\w.]+", [^,()]+, "(\w+)"\)', text):
            yield name, str(file.relative_to(ROOT))


def test_what_messages_and_pages_say_to_install_is_there() -> None:
    found = set(asked_for())
    assert {"timm", "tiff", "heif", "dicom", "onnx"} <= {name for name, _ in found}
    assert {(name, where) for name, where in found if name not in EXTRAS} == set()


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_stands_in_the_table_with_what_it_brings(extra: str) -> None:
    page = (ROOT / "docs" / "extras.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if re.match(rf"\|.*`{extra}`.*\|.*\|.*\|", line)]
    if extra not in ("dev", "browser", "demo", "docs"):
        packages = [re.split(r"[\[>=<]", one)[0] for one in EXTRAS[extra]]
        assert row.split("|")[2].strip() == ", ".join(packages)


def test_dev_brings_what_all_other_extras_do() -> None:
    own = {
        name for one in EXTRAS["dev"] for names in ASKS.findall(one) for name in names.split(",")
    }
    assert own == EXTRAS.keys() - {"dev", "browser"}


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (frostline.__version__, PROJECT["license"])


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None
    assert first[1] == frostline.__version__


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_for_the_versions_and_names_its_fields_once(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (
        {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels"}
    )
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]
        assert field.keys() <= {"type", "id", "attributes", "validations"}
    if path.stem != "wish":
        assert "versions" in ids


def test_the_container_copies_what_its_ignore_file_lets_in() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for name in line.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


def test_the_container_names_extras_that_there_are() -> None:
    (named,) = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.M)
    assert set(named.split(",")) <= EXTRAS.keys() - {"dev", "browser"}


@pytest.mark.skipif(
    (sys.platform, sys.version_info[:2]) != ("linux", (3, 11)), reason="other machines need others"
)
def test_each_package_that_the_tests_need_is_pinned() -> None:
    """pip tries release after release of one that is not, which takes minutes."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(name) for name in names}
    assert len(pinned) == len(names)
    of_a_build = re.compile("nvidia-|cuda-|triton")  # torch names the versions of what it brings
    missing = {name for name in needed("frostline[dev]") - pinned if not of_a_build.match(name)}
    assert missing == {"frostline"}


def needed(what: str) -> set[str]:
    """The names of what is installed for a requirement, itself included."""
    waiting, seen = [Requirement(what)], set[tuple[str, str]]()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        for extra in (asked.extras or {""}) - {known for who, known in seen if who == name}:
            seen.add((name, extra))
            for one in map(Requirement, requires(name) or ()):
                if one.marker is None or one.marker.evaluate({"extra": extra}):
                    waiting.append(one)
    return {name for name, _ in seen}
