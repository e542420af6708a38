"""Where a session is in its plan: all that a resumed one needs besides tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


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
        best_epoch: of all phases, with the value of `monitor` by which it is the best; 0 before
            the first.
        phase_best_epoch: the same of this phase.
        plateau_epoch: the last epoch that was better as the phase's `until` counts it.
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
    best_epoch: int = 0
    best_figure: float | None = None
    phase_best_epoch: int = 0
    phase_best_figure: float | None = None
    plateau_epoch: int = 0
    plateau_figure: float | None = None
    is_reached: bool = False
    moved: tuple[str, ...] = ()
    frozen: str = ""

    @property
    def mark(self) -> str:
        """For people and file names: `3` after three epochs, `3.17` after 17 batches more."""
        return f"{self.epochs}.{self.batches}" if self.batches else str(self.epochs)

    def next_phase(self) -> Position:
        """The beginning of the phase after this one."""
        return Position(
            phase=self.phase + 1,
            epochs=self.epochs,
            best_epoch=self.best_epoch,
            best_figure=self.best_figure,
            moved=self.moved,
        )
