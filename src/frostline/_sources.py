"""The source text of graph modules, which torch keeps for tracebacks while the process lives.

A process that makes graphs again and again, as one that fits often, would grow by the text of each
(torch 2.15); here it goes with the module.
"""

from __future__ import annotations

import linecache
import weakref

from torch import fx
from torch.fx import graph_module


def forgotten(module: fx.GraphModule) -> fx.GraphModule:
    """`module`, whose source text is given up once it is gone."""
    key = type(module).forward.__code__.co_filename
    weakref.finalize(module, _forget, key).atexit = False
    return module


def _forget(key: str) -> None:
    linecache.cache.pop(key, None)
    loader = getattr(graph_module, "_loader", None)  # torch's own, and no promise of its
    getattr(loader, "eval_cache", {}).pop(key, None)
