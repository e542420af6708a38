"""What the user may choose about a leaned model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

Gelu = Literal["exact", "compressed"]


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is leaned.

    Attributes:
        at_least_bytes: an operation on fewer than that is left to PyTorch: what there is to save
            is not worth the microseconds of a function in Python.
        gelu: `compressed` keeps a byte an element of its slope instead of the input.
    """

    at_least_bytes: int = 65536
    gelu: Gelu = "exact"
