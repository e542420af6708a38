"""A batch handed to a model: by name, by place, or as the one thing that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def call_with(model: Callable[..., Any], batch: Any) -> Any:
    """`model` on a batch: a mapping goes in as keyword arguments, a tuple or list as positional."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)
