"""What to do where no line can be drawn: a submodule that the model can really be cut behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import final

from torch import nn

from frostline.errors import CutError

# Each is tried on the example, which takes some forwards.
_MOST_TRIED = 4


@final
class Unfollowed(CutError):  # noqa: N818 - named for what happened
    """No line could be drawn by following the forward; behind a named submodule one may run."""


def offer(model: nn.Module, cut_behind: Callable[[str], object]) -> str:
    """A sentence that names a frozen submodule to cut behind; empty where none was found to do.

    Args:
        cut_behind: cuts the model there, checks included, or raises.
    """
    for path in islice(_candidates(model), _MOST_TRIED):
        with suppress(Exception):  # whatever a forward raises that was not made for this
            cut_behind(path)
            return f' A frozen submodule to cut behind: fl.cut(model, example, at="{path}").'
    return ""


def frozen_root(model: nn.Module, path: str) -> str:
    """The outermost wholly frozen submodule that holds the one at `path`; "" if there is none."""
    parts = path.split(".") if path else []
    for length in range(1, len(parts) + 1):
        above = ".".join(parts[:length])
        if _is_frozen(model.get_submodule(above)):
            return above
    return ""


def _candidates(model: nn.Module) -> Iterator[str]:
    """Frozen submodules that nothing frozen holds, the last first: the most lies below it."""
    roots = [
        path
        for path, module in model.named_modules()
        if path and _is_frozen(module) and frozen_root(model, path) == path
    ]
    for path in reversed(roots):
        module = model.get_submodule(path)
        while isinstance(module, nn.ModuleList) and len(module):  # is not called itself
            path, module = f"{path}.{len(module) - 1}", module[-1]
        yield path


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
