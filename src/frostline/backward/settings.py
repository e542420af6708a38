"""What the user may choose about a leaned model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

from frostline.errors import ConfigError

Gelu = Literal["exact", "compressed"]


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is leaned.

    Attributes:
        at_least_bytes: an operation on fewer than that is left to PyTorch: what there is to save
            is not worth the microseconds of a function in Python. As `benchmarks/lean_threshold.py`
            has it, a chain of the cheapest operations takes 2.4 times as long on 64 KiB, 1.26 times
            on 1 MiB.
        gelu: `compressed` keeps a byte an element of its slope instead of the input.
    """

    at_least_bytes: int = 1 << 20
    gelu: Gelu = "exact"

    def __post_init__(self) -> None:
        if self.gelu not in get_args(Gelu):
            raise ConfigError(f"gelu={self.gelu!r} is not known. Give 'exact' or 'compressed'.")
