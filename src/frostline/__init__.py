"""Frostline: freeze any part of a pretrained PyTorch model and train the rest.

    import frostline as fl

    frozen = fl.freeze(model, "backbone")
    ...train...
    frozen.verify()

The names in `__init__.pyi`, which type checkers read, are imported when they are first used, so
that the command line can answer `--help` without loading torch.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from frostline._moved import offer_old_modules
from frostline._version import __version__ as __version__

offer_old_modules()

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOME_OF = {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as", _STUB, re.M)}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'frostline' has no attribute '{name}'")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
