"""What `import frostline as fl` offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import frostline as fl

STUB = Path(fl.__file__).with_suffix(".pyi")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_all_names_are_sorted() -> None:
    assert fl.__all__ == sorted(fl.__all__)


def test_type_checkers_see_the_same_names() -> None:
    imports = (n for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.ImportFrom))
    named = [alias.asname for node in imports for alias in node.names]
    assert sorted(filter(None, named)) == sorted(fl.__all__)


def test_type_checkers_see_them_where_they_come_from() -> None:
    for node in ast.parse(STUB.read_text()).body:
        assert isinstance(node, ast.ImportFrom | ast.Expr)
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            home = __import__(str(node.module), fromlist=[alias.name])
            assert getattr(fl, alias.name) is getattr(home, alias.name)


@pytest.mark.parametrize("name", fl.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(fl, name)
    assert name.startswith("_") or value.__doc__


def test_public_names_and_no_others_are_listed_by_dir() -> None:
    assert dir(fl) == fl.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    told = r"^module 'frostline' has no attribute 'freez'\. Nearest: freeze, "
    with pytest.raises(AttributeError, match=told):
        _ = fl.freez  # type: ignore[attr-defined]


def test_unfreeze_points_to_thaw() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'unfreeze'\. Nearest: thaw, "):
        _ = fl.unfreeze  # type: ignore[attr-defined]


def test_importing_frostline_loads_no_torch() -> None:
    code = "import sys, frostline; dir(frostline); print('torch' in sys.modules)"
    assert run(code) == "False"


FIRST_USES = """
import sys, frostline
def loaded():
    heavy = "torchvision timm accelerate torchmetrics pydantic rich PIL typer tensorboard sklearn"
    return sorted(set(heavy.split()) & set(sys.modules))
frostline.freeze
print("freeze", *loaded())
frostline.Recipe
print("Recipe", *loaded())
import frostline.models
print("models", *({"torchvision", "timm"} & set(sys.modules)))
"""


def test_the_first_uses_load_torch_and_nothing_heavy_beyond_it() -> None:
    assert run(FIRST_USES).splitlines() == ["freeze", "Recipe pydantic", "models"]


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert fl.__version__ == version("frostline")
