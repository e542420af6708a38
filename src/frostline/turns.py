"""What one thread does at a time: tracing and random numbers are of the whole process.

torch.export replaces functions of torch while it follows a model, and every thread draws from one
generator, which a training loop seeds and a check puts back. Two threads at this at once get other
bits, or errors that blame the model; so the second waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

# A thread that has the turn may take it again: `fit` cuts, and a hook of its may cut as well.
_TURN: Final = threading.RLock()


def in_turn(work: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """`work`, done by one thread of the process at a time, together with all that is `in_turn`."""

    @wraps(work)
    def alone(*given: _Given.args, **named: _Given.kwargs) -> _Result:
        with _TURN:
            return work(*given, **named)

    return alone
