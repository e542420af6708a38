"""What tuning found: each form tried, and the one that was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from frostline.tuning.forms import PLAIN, Form


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One form as measured on real samples.

    Attributes:
        form: what was tried.
        seconds_per_sample: the quickest run; `None` if none was completed.
        error: L2 distance from plain float32, relative to its norm, of the worst output over all
            given samples; `None` if unknown.
        refused: why it cannot be used; empty if it can.
    """

    form: Form
    seconds_per_sample: float | None = None
    error: float | None = None
    refused: str = ""


@final
@dataclass(frozen=True, slots=True)
class Tuned:
    """The form to compute a prefix in, and the evidence for it.

    Attributes:
        form: the first within tolerance that is not slow; plain float32 where none is.
        error: as in `Trial`, over all given samples; 0 for plain float32.
        batch_size: samples per pass.
        trials: what was tried, in that order; empty if exactness was asked for.
        seconds_per_sample: of the form; `None` if nothing was timed.
        plain_seconds_per_sample: of plain float32; `None` if nothing was timed.
    """

    form: Form
    error: float
    batch_size: int
    trials: tuple[Trial, ...] = ()
    seconds_per_sample: float | None = None
    plain_seconds_per_sample: float | None = None

    @property
    def speedup(self) -> float:
        """How many times the speed of plain float32; 1 for plain float32 itself."""
        if self.form == PLAIN or not self.seconds_per_sample or not self.plain_seconds_per_sample:
            return 1.0
        return self.plain_seconds_per_sample / self.seconds_per_sample

    def __str__(self) -> str:
        if self.form == PLAIN:
            return f"{self.form}, exactly as in the model"
        return (
            f"{self.form}, {self.speedup:.1f} times the speed of plain float32, "
            f"relative error {format_error(self.error)}"
        )


def format_error(error: float) -> str:
    """`0.0031` -> `0.31 %`; tiny ones as a power of ten, where percent would be all zeros."""
    return f"{error:.1e}" if 0 < error < 1e-5 else f"{error * 100:.2g} %"
