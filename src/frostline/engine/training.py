"""A training run as it goes: its position, its records, and the hooks that see them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from frostline.plans import Phase
from frostline.recipe import Recipe
from frostline.records import EpochRecord, PhaseRecord, Proven, Spent
from frostline.tasks import Metric, Metrics


@final
@dataclass(frozen=True, slots=True)
class Predictions:
    """Outputs `(samples, ...)` in float32, targets `(samples, ...)` and what samples are called."""

    outputs: Tensor
    targets: Tensor
    names: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Left:
    """What is known when a phase has ended.

    Attributes:
        frozen: the proof of what was frozen in it.
        moved: parameters and buffers that may have moved until now.
        plain_step_seconds: of one step of a plain loop in this phase; 0 if it was not timed.
    """

    frozen: Proven
    moved: tuple[str, ...] = ()
    plain_step_seconds: float = 0.0


@final
@dataclass
class Position:
    """Where a run is; all that a resumed run needs besides tensors.

    Attributes:
        phase: from 0.
        epochs: ended in the run.
        phase_epochs: ended in this phase.
        phase_steps: optimizer steps made in this phase.
        phase_seconds: of wall clock in this phase's epochs.
        feed_seconds: that went before them.
        batches: done of the epoch that is under way; with the sums of its loss, samples and task.
        best_epoch: of the run, with the metric by which it is the best; 0 before the first.
        phase_best_epoch: the same of this phase.
        plateau_epoch: the last epoch that was better as the phase's `until` counts it.
        moved: parameters and buffers that may have moved in phases before this one.
        frozen: content hash of the frozen part when this phase began.
        spent: seconds of the epoch that is under way.
    """

    phase: int = 0
    epochs: int = 0
    phase_epochs: int = 0
    phase_steps: int = 0
    phase_seconds: float = 0.0
    feed_seconds: float = 0.0
    batches: int = 0
    loss_sum: float = 0.0
    sums: dict[str, int | float] = field(default_factory=dict)
    seen: int = 0
    epoch_seconds: float = 0.0
    best_epoch: int = 0
    best_figure: float | None = None
    phase_best_epoch: int = 0
    phase_best_figure: float | None = None
    plateau_epoch: int = 0
    plateau_figure: float | None = None
    moved: tuple[str, ...] = ()
    frozen: str = ""
    spent: Spent = field(default_factory=Spent)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """From its fields as plain data; also as version 0.1 wrote them.

        Raises:
            KeyError, ValueError: something is missing or of another kind.
        """
        given = dict(content)
        if "sums" not in given:
            given["sums"] = {"accuracy": given.pop("correct")}
        return TypeAdapter(cls).validate_python(given)

    @property
    def is_fresh(self) -> bool:
        """Whether this phase has made no step yet."""
        return not self.phase_steps

    @property
    def mark(self) -> str:
        """For people and file names: `3` after three epochs, `3.17` after 17 batches more."""
        return f"{self.epochs}.{self.batches}" if self.batches else str(self.epochs)


@final
@dataclass
class Training:
    """A training run as it goes: what hooks see, and what a resumed run starts from.

    Attributes:
        phases: what is to be done, one after the other; each completed by the recipe.
        steps_per_epoch: batches of a whole epoch.
        optimizer: of the present phase; None before the first.
        restored: tensors of the run that is resumed, until they are taken up.
        scaler: of float16 gradients, where there is one.
        found: what the model made of the validation data at the end of the last epoch, for hooks
            that are told of it; not kept longer.
    """

    model: nn.Module
    recipe: Recipe
    phases: tuple[Phase, ...]
    steps_per_epoch: int
    position: Position = field(default_factory=Position)
    history: list[EpochRecord] = field(default_factory=list)
    phase_history: list[PhaseRecord] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    restored: Mapping[str, Any] | None = None
    scaler: torch.amp.GradScaler | None = None
    found: Predictions | None = None
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _clock: float = field(default_factory=time.perf_counter)

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self.phases[self.position.phase]

    @property
    def epochs_done(self) -> int:
        """Ended epochs of the run."""
        return self.position.epochs

    @property
    def best_epoch(self) -> int:
        """The epoch with the best metric so far; 0 before there is one."""
        return self.position.best_epoch

    @property
    def planned_epochs(self) -> int | None:
        """Epochs of the whole run at most, counting what has ended; None where no one knows."""
        at = self.position
        rest = [self._epochs_of(phase) for phase in self.phases[at.phase + 1 :]]
        own = self._epochs_of(self.phase)
        if own is None or None in rest:
            return None
        return at.epochs - at.phase_epochs + own + sum(filter(None, rest))

    @property
    def is_over(self) -> bool:
        """Whether the last phase has ended."""
        return self.position.phase == len(self.phases) - 1 and bool(self.phase_end)

    @property
    def phase_end(self) -> str:
        """What ended the present phase, for people; empty while it goes on."""
        phase, at, until = self.phase, self.position, self.phase.until
        if phase.steps is not None and at.phase_steps >= phase.steps and not at.batches:
            return f"{at.phase_steps} step{'s' if at.phase_steps > 1 else ''}"
        if phase.epochs is not None and at.phase_epochs >= phase.epochs:
            return f"{at.phase_epochs} epoch{'s' if at.phase_epochs > 1 else ''}"
        if until is None or at.batches or not at.phase_epochs:
            return ""
        if until.minutes is not None and at.phase_seconds >= 60 * until.minutes:
            return f"{until.minutes:g} minutes"
        metric = self._watched(self.history[-1].validation)
        if until.target is not None and metric.reaches(until.target):
            return f"{metric.name} reached {until.target:g}"
        waited = at.epochs - at.plateau_epoch
        if until.patience is not None and at.plateau_epoch and waited >= until.patience:
            return f"no better {metric.name} for {waited} epoch{'s' if waited > 1 else ''}"
        return ""

    @property
    def stops_within_epoch(self) -> bool:
        """Whether the epoch under way is to be cut short here: no steps or no time are left."""
        phase, at = self.phase, self.position
        out_of_steps = phase.steps is not None and at.phase_steps >= phase.steps
        minutes = phase.until.minutes if phase.until else None
        return out_of_steps or (minutes is not None and at.phase_seconds >= 60 * minutes)

    def count_step(self, loss: float, sums: Mapping[str, Tensor], samples: int) -> None:
        """Count an optimizer step; the task's `sums` stay on their device until settled."""
        at = self.position
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, at.sums.get(name, 0)) + value
        at.loss_sum += loss * samples
        at.seen += samples
        at.batches += 1
        at.phase_steps += 1
        self.tick()

    def settle_sums(self) -> None:
        """Bring the sums of the epoch under way into the position.

        They also go on where they are: a resumed run then adds the same numbers in the same order.
        """
        self.position.sums = {name: value.item() for name, value in self._sums.items()}

    def tick(self) -> None:
        """Count the wall clock since the last tick into the phase and the epoch."""
        now = time.perf_counter()
        self.position.phase_seconds += now - self._clock
        self.position.epoch_seconds += now - self._clock
        self._clock = now

    def restart_clock(self) -> None:
        """Let what happened since the last tick not count."""
        self._clock = time.perf_counter()

    def end_epoch(self, rates: tuple[float, ...], found: Metrics, train_seconds: float) -> None:
        """Count an epoch with its validation metrics, and note whether it is the best.

        Args:
            rates: learning rates at its end, highest first.
        Raises:
            ConfigError: the task has no metric of the name that is monitored.
        """
        at, metric = self.position, found.metric(self.recipe.monitor)
        best = metric.beats(at.best_figure)
        sums = {"loss": at.loss_sum, **at.sums}
        record = EpochRecord(
            epoch=at.epochs + 1,
            lr=rates[0],
            train={name: value / at.seen for name, value in sums.items()},
            validation=found,
            seconds=at.epoch_seconds,
            samples_per_second=at.seen / train_seconds,
            best=best,
            phase=at.phase + 1,
            rates=rates,
            spent=at.spent,
        )
        at.spent = Spent()
        at.epochs, at.phase_epochs = at.epochs + 1, at.phase_epochs + 1
        at.batches, at.seen, at.loss_sum, at.epoch_seconds = 0, 0, 0.0, 0.0
        at.sums, self._sums = {}, {}
        if best:
            at.best_epoch, at.best_figure = at.epochs, metric.value
        if metric.beats(at.phase_best_figure):
            at.phase_best_epoch, at.phase_best_figure = at.epochs, metric.value
        if (until := self.phase.until) is not None:
            watched = self._watched(found)
            if watched.beats(at.plateau_figure, min_change=until.min_change):
                at.plateau_epoch, at.plateau_figure = at.epochs, watched.value
        self.history.append(record)

    def end_phase(self, ended: Left) -> None:
        """Note what the present phase gave."""
        at = self.position
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.phase_history[at.phase :] = [
            PhaseRecord(
                phase=at.phase + 1,
                name=self.phase.label(at.phase + 1),
                trained=trained,
                epochs=at.phase_epochs,
                steps=at.phase_steps,
                feed_seconds=at.feed_seconds,
                seconds=at.phase_seconds,
                plain_step_seconds=ended.plain_step_seconds,
                ended=self.phase_end,
                best_epoch=at.phase_best_epoch,
                best_figure=at.phase_best_figure,
                frozen=ended.frozen,
            )
        ]

    def begin_next_phase(self, moved: tuple[str, ...]) -> None:
        """Go on to the next phase; `moved` is what may have moved until now."""
        at = self.position
        self.position = Position(
            phase=at.phase + 1,
            epochs=at.epochs,
            best_epoch=at.best_epoch,
            best_figure=at.best_figure,
            moved=moved,
        )

    def _watched(self, found: Metrics) -> Metric:
        """The metric by which the present phase may end."""
        until = self.phase.until
        return found.metric((until and until.monitor) or self.recipe.monitor)

    def _epochs_of(self, phase: Phase) -> int | None:
        if phase.steps is not None:
            by_steps = -(-phase.steps // self.steps_per_epoch)
            return by_steps if phase.epochs is None else min(phase.epochs, by_steps)
        return phase.epochs


class Hook:
    """What a run may call out to; each method does nothing unless it is written."""

    def on_start(self, training: Training) -> None:
        """Before the first step; may set the position to resume from."""

    def on_notice(self, text: str, /) -> None:
        """One line for people on how the run will go, before the steps that it is about."""

    def on_batch(self, stage: str, done: int, total: int, /) -> None:
        """After each batch of `stage` ("features", "train" or "validate")."""

    def on_step(self, training: Training) -> None:
        """After each optimizer step; the position counts it."""

    def on_epoch(self, training: Training) -> None:
        """After each epoch; `training.history[-1]` is its record."""

    def on_phase(self, training: Training) -> None:
        """After each phase; `training.phase_history[-1]` is its record."""

    def on_end(self) -> None:
        """Last of all, also when the run was interrupted or failed."""
