"""The sdist and the wheel: built, installed into an environment of its own, and used from there.

The environment sees the packages that this one has, since torch alone is gigabytes; Frostline it
has from the wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import frostline
from small_world import write_net, write_pictures

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "frostline"
PROJECT = Path(__file__).with_name("typed_project.py")
# All of it in one process, since each would load torch anew.
USES = """
import runpy, sys, frostline
from frostline.cli import main

def call(*arguments):
    sys.argv = ["frostline", *arguments]
    try:
        main()
    except SystemExit as leaving:
        assert not leaving.code, arguments

missing = [name for name in frostline.__all__ if getattr(frostline, name, None) is None]
assert not missing, missing
print("from", frostline.__file__, "with", len(frostline.__all__), "names")
sys.argv = ["project", "."]
runpy.run_path(PROJECT, run_name="__main__")
call("train", "photos", "--model", "small_net.py:net", "--weights", "none", "--epochs", "1",
     "--freeze", "features", "--out", "trained", "--device", "cpu", "--features", "off")
call("verify", "trained")
call("report", "trained", "--out", "report.html")
call("inspect", "small_net.py:net", "--html", "model.html")
"""


def names_of(archive: Path) -> set[str]:
    """What the archive holds, without the folder that an sdist has around it."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as files:
        return {name.partition("/")[2] for name in files.getnames()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel made of what it holds."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [REPOSITORY / "scripts" / "build", folder],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sdist, wheel = map(Path, done.stdout.split())
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; gives its folder of commands."""
    folder = tmp_path_factory.mktemp("environment")
    make = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(make, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that is named like this is searched last, and its own .pth files are not read.
    (packages / "parent.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    done = run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"],
        ["--disable-pip-version-check", "--no-deps", "--no-index", "--ignore-installed"],
        [built[1]],
        cwd=folder,
    )
    assert "error" not in done.lower()
    return folder / "bin"


def run(*parts: Sequence[object], cwd: Path) -> str:
    """What the command says; it sees no source of this repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for part in parts for word in part]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    kinds = ("*.py", "*.pyi", "py.typed", "pages/assets/*")
    ours = {f"frostline/{f.relative_to(PACKAGE)}" for kind in kinds for f in PACKAGE.rglob(kind)}
    found = names_of(built[1])
    assert ours - found == set()
    beside = {name for name in found - ours if ".dist-info/" not in name}
    assert beside == set()


def test_the_sdist_holds_no_tests_but_what_a_reader_looks_for(built: tuple[Path, Path]) -> None:
    found = names_of(built[0])
    assert not [name for name in found if name.startswith(("tests", "benchmarks"))]
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= found


def test_the_installed_command_says_this_version(installed: Path, tmp_path: Path) -> None:
    first = run([installed / "frostline", "--version"], cwd=tmp_path).splitlines()[0]
    assert first == f"frostline {frostline.__version__}"


def test_names_a_users_project_and_the_command_line_work(installed: Path, tmp_path: Path) -> None:
    write_net(tmp_path)
    write_pictures(tmp_path / "photos", train=4, val=2)
    uses = f"PROJECT = {str(PROJECT)!r}\n{USES}"
    said = run([installed / "python", "-c", uses], cwd=tmp_path)
    where = f"from {installed.parent}"
    assert said.startswith(where)
    assert f"with {len(frostline.__all__)} names" in said
    assert "7 frozen tensors (232 B) are bit for bit as they were" in said  # of the project
    assert said.count("bit for bit") >= 3  # of the project twice, and of the trained run
    for page in ("report.html", "model.html"):
        assert "<style>" in (tmp_path / page).read_text(encoding="utf-8")
