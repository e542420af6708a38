"""Calls: a batch handed to a model, and work that one thread does at a time.

Tracing and random numbers are of the whole process: torch.export replaces functions of torch while
it follows a model, and every thread draws from one generator, which a training loop seeds and a
check or an estimate puts back. Two threads at this at once get other bits, or errors that blame the
model; so the second waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar


def call_with(model: Callable[..., Any], batch: Any) -> Any:
    """`model` on a batch: a mapping goes in as keyword arguments, a tuple or list as positional."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

# A thread that has the turn may take it again: `fit` cuts, and a hook of its may cut as well.
_TURN = threading.RLock()


def _begin_anew() -> None:
    """A child process has none of the other threads, which would never give their turn back."""
    global _TURN
    _TURN = threading.RLock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_anew)


def in_turn(work: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """`work`, done by one thread of the process at a time, together with all that is `in_turn`."""

    @wraps(work)
    def alone(*given: _Given.args, **named: _Given.kwargs) -> _Result:
        with _TURN:
            return work(*given, **named)

    return alone
