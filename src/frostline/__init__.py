"""Frostline: freeze any part of a pretrained PyTorch model and train the rest.

Example:
    >>> import torch
    >>> from torch import nn
    >>> import frostline as fl
    >>> model = nn.Sequential()
    >>> model.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    >>> data = torch.utils.data.TensorDataset(images, labels)
    >>> frozen = fl.freeze(model, "backbone")
    >>> run = fl.fit(model, data, data, epochs=1)
    >>> print(frozen.verify())
    7 frozen tensors (1.03 KB) are bit for bit as they were

The example of each other name goes on from `frozen` here.

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
        from frostline.errors import nearest

        near = [] if name.startswith("_") else nearest(name, __all__)
        hint = f". Nearest: {', '.join(near)}" if near else ""
        raise AttributeError(f"module 'frostline' has no attribute '{name}'{hint}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
