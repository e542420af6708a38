"""Who made a run's model: names, versions and code, from which an equal model can be expected."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from frostline._files import file_digest
from frostline._version import __version__
from frostline.cutting import Origin
from frostline.models import LoadedModel
from frostline.tuning import machine

_UNREADABLE = "unreadable"


def origin_of(loaded: LoadedModel, device: torch.device) -> Origin:
    """Of a model that was built just now, in a process that built no other.

    Counted are its name, the versions of the packages that its classes are of, the content of
    each Python file that was imported from elsewhere, as the user's own and its neighbours, the
    configs that its modules hold, and the processor. What code reads that is no Python, as the
    environment, is not.
    """
    model = loaded.model
    lines = [
        f"{loaded.spec} head {loaded.head}",
        f"Frostline {__version__}, Python {platform.python_version()}, {machine(device)}",
        *_versions(model),
        *_own_files(),
        *_configs(model),
    ]
    return Origin("\n".join(lines), is_own=loaded.spec.source == "file")


def _versions(model: nn.Module) -> Iterator[str]:
    names = {k.__module__.partition(".")[0] for m in model.modules() for k in type(m).__mro__}
    for name in sorted(names - {"builtins", "frostline"}):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:  # no package, but a file: it is among those below
            yield name


def _own_files() -> Iterator[str]:
    """Of files that no installed package and no part of Python are; each with its digest."""
    found = sysconfig.get_paths()
    homes = [Path(found[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = tuple(f"{home}{os.sep}" for home in (*homes, Path(__file__).parents[1]))
    files: set[str] = set(map(_file_of, list(sys.modules.values())))
    for file in sorted(file for file in files if file and not file.startswith(installed)):
        try:
            yield f"{file} {file_digest(Path(file))}"
        except OSError:
            yield f"{file} {_UNREADABLE}"


def _file_of(module: ModuleType) -> str:
    file = str(getattr(module, "__file__", None) or "")
    return file if Path(file).suffix else ""  # not the command that was started


def _configs(model: nn.Module) -> Iterator[str]:
    """Texts of the configs that models of transformers hold, which their forwards read."""
    for path, module in model.named_modules():
        config: Any = vars(module).get("config")
        if hasattr(config, "to_json_string"):
            yield f"config of {path}: {config.to_json_string()}"
