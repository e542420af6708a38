"""Which attributes of its modules does a forward read? Seen, not guessed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_LOCK = threading.RLock()


@contextmanager
def reads_noted(model: nn.Module) -> Iterator[dict[str, set[str]]]:
    """Path of a module -> names of its attributes that the block reads, and does not set.

    For a module under several paths, under each. What a forward sets is its own business: a
    counter, a cache, the attention it saw last.
    """
    read: dict[int, set[str]] = {id(module): set() for module in model.modules()}
    written: dict[int, set[str]] = {id(module): set() for module in model.modules()}
    found: dict[str, set[str]] = {}
    with _LOCK, _noted(read, written):
        yield found
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = read.get(id(module), set()) - written.get(id(module), set())


@contextmanager
def _noted(read: Mapping[int, set[str]], written: Mapping[int, set[str]]) -> Iterator[None]:
    own = vars(nn.Module)
    former = own.get("__getattribute__")
    get, put = nn.Module.__getattribute__, nn.Module.__setattr__

    def noting_get(self: nn.Module, name: str) -> Any:
        if (names := read.get(id(self))) is not None:
            names.add(name)
        return get(self, name)

    def noting_put(self: nn.Module, name: str, value: Any) -> None:
        if (names := written.get(id(self))) is not None:
            names.add(name)
        put(self, name, value)

    nn.Module.__getattribute__ = noting_get  # type: ignore[method-assign, assignment]  # meanwhile
    nn.Module.__setattr__ = noting_put  # type: ignore[method-assign]  # likewise
    try:
        yield
    finally:
        nn.Module.__setattr__ = put  # type: ignore[method-assign]  # as it was
        if former is None:
            del nn.Module.__getattribute__
        else:
            nn.Module.__getattribute__ = former  # type: ignore[method-assign]  # as it was
