"""How a message names what to write: as Python has it, or as the command line does.

Whoever raises does not know who asked; the command line says that it is one while a verb runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from shlex import quote

_TYPED = ContextVar("on the command line", default=False)


@contextmanager
def on_the_command_line() -> Iterator[None]:
    """Within it messages name options of the command line."""
    before = _TYPED.set(True)
    try:
        yield
    finally:
        _TYPED.reset(before)


def either(python: str, typed: str) -> str:
    """`python`, or on the command line `typed`."""
    return typed if _TYPED.get() else python


def option(name: str, value: object = ...) -> str:
    """`batch_size=16`, or on the command line `--batch-size 16`; without a value its name alone."""
    typed = f"--{name.replace('_', '-')}"
    if value is ...:
        return either(f"`{name}`", typed)
    return either(f"{name}={value!r}", typed if value is True else f"{typed} {quote(str(value))}")
