"""A module imports only from floors below its own, and no import goes in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import frostline

FLOORS = {
    "_files": 0,
    "_leash": 0,
    "_moved": 0,
    "_sources": 0,
    "_version": 0,
    "calling": 0,
    "choices": 0,
    "devices": 1,
    "errors": 0,
    "narrowing": 0,
    "preprocessing": 0,
    "recipe": 1,
    "schemas": 0,
    "standins": 0,
    "tables": 0,
    "units": 0,
    "wording": 0,
    "world": 0,
    "wrapped": 0,
    "wrappers": 0,
    "sharding": 1,
    "_tensor_files": 1,
    "selectors": 1,
    "backward": 2,
    "casting": 2,
    "fingerprints": 2,
    "groups": 2,
    "freezing": 3,
    "cutting": 4,
    "data": 4,
    "models": 4,
    "plans": 4,
    "store": 4,
    "optimizer_sync": 4,
    "tuning": 4,
    "checkup": 6,
    "deltas": 5,
    "features": 5,
    "tasks": 5,
    "records": 6,
    "session": 7,
    "engine": 8,
    "estimates": 8,
    "callbacks": 9,
    "lightning": 8,
    "transformers": 8,
    "config": 9,
    "pages": 9,
    "probing": 9,
    "reports": 10,
    "": 11,  # the package itself: what a user imports as `fl`
    "fitting": 11,
    "runs": 12,
    "classifier": 13,
    "exports": 13,
    "studio": 13,
    "sweeps": 13,
    "cli": 14,
    "__main__": 15,
}
# Every module may raise: errors, and how they name what to write, stand under the ground floor.
CELLAR = {"errors", "wording"}
# Names of the package itself that hold no module.
OWN_NAMES = {"__version__"}

ROOT = Path(frostline.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_of(path: Path) -> str:
    """`selectors/terms.py` -> `selectors.terms`; a package's `__init__.py` is the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that the file imports anywhere in it, also under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "frostline":
                    yield alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom) and (node.level or _is_ours(node.module)):
            assert not node.level, f"{path.name}: a relative import; write it in full"
            base = str(node.module).partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                if inner not in OWN_NAMES:
                    yield inner if inner in MODULES else base


def _is_ours(module: str | None) -> bool:
    return str(module).split(".")[0] == "frostline"


def floor_name(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_stands_on_a_floor(module: str) -> None:
    assert floor_name(module) in FLOORS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below_its_own(module: str) -> None:
    own = floor_name(module)
    others = {floor_name(name) for name in imported(MODULES[module])} - {own} - CELLAR
    assert {name: FLOORS[name] for name in others if FLOORS[name] >= FLOORS[own]} == {}


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: set(imported(path)) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")


def test_no_package_is_imported_by_its_own_modules() -> None:
    """It would find the package half made."""
    inside = {
        module: [name for name in imported(path) if module.startswith(f"{name}.")]
        for module, path in MODULES.items()
    }
    assert not any(inside.values()), inside
