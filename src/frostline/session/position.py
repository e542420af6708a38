"""Where a session is in its plan: all that a resumed one needs besides tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from pydantic import TypeAdapter

from frostline.plans import Phase
from frostline.tasks import Best

_NONE = Best()


@final
@dataclass
class Position:
    """Where a session is in its plan; plain data, which any file can hold.

    Attributes:
        phase: from 0.
        epochs: ended in all phases.
        phase_epochs: ended in this phase.
        phase_steps: optimizer steps made in this phase.
        phase_seconds: of wall clock in this phase's epochs.
        batches: done of the epoch that is under way.
        epoch_seconds: of that epoch.
        best: the best epoch of all phases, `phase_best` that of this phase.
        plateau: the last epoch that was better as the phase's `until` counts it.
        is_reached: whether the last epoch met the target of the phase's `until`.
        moved: parameters and buffers that may have moved until now.
        frozen: content hash of the frozen part when this phase began.
    """

    phase: int = 0
    epochs: int = 0
    phase_epochs: int = 0
    phase_steps: int = 0
    phase_seconds: float = 0.0
    batches: int = 0
    epoch_seconds: float = 0.0
    best: Best = _NONE
    phase_best: Best = _NONE
    plateau: Best = _NONE
    is_reached: bool = False
    moved: tuple[str, ...] = ()
    frozen: str = ""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """From what `asdict` gave; also as version 0.1 wrote it, with each best as two fields.

        Raises:
            ValueError: something is of another kind.
        """
        given = dict(content)
        for name in ("best", "phase_best", "plateau"):
            if f"{name}_epoch" in given:
                epoch, value = given.pop(f"{name}_epoch"), given.pop(f"{name}_figure")
                given[name] = {"epoch": epoch, "value": value, "top": value}
        found: Self = TypeAdapter(cls).validate_python(given)
        return found

    @property
    def mark(self) -> str:
        """For people and file names: `3` after three epochs, `3.17` after 17 batches more."""
        return f"{self.epochs}.{self.batches}" if self.batches else str(self.epochs)

    def next_phase(self) -> Position:
        """The beginning of the phase after this one."""
        return Position(
            phase=self.phase + 1,
            epochs=self.epochs,
            best=self.best,
            moved=self.moved,
        )


def goes_on(before: Sequence[Phase], now: Sequence[Phase]) -> bool:
    """Whether one may go on by `now` where one was in `before`.

    The last of these phases may have another number of epochs, and more may follow it.
    """
    *earlier, last = before
    here = now[: len(before)]
    same = [*here[:-1]] == earlier and len(here) == len(before)
    return same and here[-1].model_copy(update={"epochs": last.epochs}) == last
