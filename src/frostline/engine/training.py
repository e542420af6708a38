"""A training run as it goes: its session, its records, and the hooks that see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.freezing import Proof
from frostline.metrics import Evaluation
from frostline.plans import Phase
from frostline.recipe import Recipe
from frostline.session import Position, Session
from frostline.tables import Column, Table
from frostline.units import format_count, format_seconds


@final
@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits `(samples, classes)`, targets `(samples,)` and what each sample is called."""

    logits: Tensor
    targets: Tensor
    names: tuple[str, ...]


@final
@dataclass(slots=True)
class Spent:
    """Seconds of wall clock by what they went into, read where batches begin and end.

    A device that works behind the processor's back is not waited for: what is queued counts where
    its result is asked for, which each step does.

    Attributes:
        idle_seconds: in which training waited for its batches: for decoding and reading.
        prefix_seconds: computing the frozen part of training batches as they came.
        step_seconds: forward, backward and update of what the batches go through.
        validation_seconds: all of validation.
    """

    idle_seconds: float = 0.0
    prefix_seconds: float = 0.0
    step_seconds: float = 0.0
    validation_seconds: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: counted from 1, through all phases.
        lr: learning rate of the last stage at the epoch's end.
        train_loss: mean of the loss that was minimised, per sample.
        train_accuracy: over the epoch, while the weights moved.
        seconds: training and validation together.
        samples_per_second: of training.
        best: whether its validation figure is the best so far.
        phase: to which it belongs, counted from 1.
        rates: the learning rates of all parameters at the epoch's end, highest first, each once.
        spent: where the seconds went; None in records of before it was noted.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation: Evaluation
    seconds: float
    samples_per_second: float
    best: bool
    phase: int = 1
    rates: tuple[float, ...] = ()
    spent: Spent | None = None


@final
@dataclass(frozen=True, slots=True)
class Proven:
    """How much was compared and found unmoved, with the content hash of it."""

    tensors: int
    nbytes: int
    fingerprint: str


@final
@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """What one phase gave.

    Attributes:
        phase: counted from 1.
        trained: parameters (elements) that were trainable.
        epochs: whole ones, or one cut short by the phase's number of steps.
        feed_seconds: until its first batch was there: the cut, and features that were computed.
        seconds: of training and validation.
        plain_step_seconds: of one step of a plain loop, as timed before the run; 0 if it was not.
        ended: what ended it, for people.
        best_epoch: of this phase, counted through the run; 0 where no figure was a number.
        frozen: of what was frozen in this phase.
    """

    phase: int
    name: str
    trained: int
    epochs: int
    steps: int
    feed_seconds: float
    seconds: float
    plain_step_seconds: float
    ended: str
    best_epoch: int
    best_figure: float | None
    frozen: Proven


def phase_table(records: Sequence[PhaseRecord]) -> Table:
    """What each phase trained, took and gave."""
    heads = ("phase", "trained", "epochs", "features", "epochs' time", "best", "ended by")
    rows = (
        (
            f"{record.phase} {record.name}",
            format_count(record.trained),
            str(record.epochs),
            format_seconds(record.feed_seconds),
            format_seconds(record.seconds),
            "-" if record.best_figure is None else f"{record.best_figure:.3f}",
            record.ended,
        )
        for record in records
    )
    columns = (
        Column(head, "right" if 0 < place < len(heads) - 1 else "left")
        for place, head in enumerate(heads)
    )
    return Table(tuple(columns), tuple(rows))


@final
@dataclass
class Sums:
    """What adds up over the epoch that is under way, and seconds before the phase's first one."""

    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    spent: Spent = field(default_factory=Spent)
    pipeline_seconds: float = 0.0


@final
@dataclass
class Training:
    """A training run as it goes: what hooks see, and what a resumed run starts from.

    Attributes:
        session: the phases, and where in them the run is.
        scaler: of float16 gradients, where there is one; `scaled` is its state in a run that is
            resumed, until it is taken up.
        found: what the model made of the validation data at the end of the last epoch, for hooks
            that are called with it; not kept longer.
        plain_step_seconds: of one step of a plain loop in each phase; 0 where it was not timed.
    """

    session: Session
    history: list[EpochRecord] = field(default_factory=list)
    phase_history: list[PhaseRecord] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    scaler: torch.amp.GradScaler | None = None
    scaled: Mapping[str, Any] = field(default_factory=dict)
    found: Predictions | None = None
    plain_step_seconds: tuple[float, ...] = ()
    _hits: Tensor | None = None

    @property
    def model(self) -> nn.Module:
        return self.session.model

    @property
    def recipe(self) -> Recipe:
        return self.session.recipe

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is to be done, one after the other; each completed by the recipe."""
        return self.session.phases

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self.session.phase

    @property
    def position(self) -> Position:
        return self.session.position

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the present phase."""
        return self.session.optimizer

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
        return self.position.phase == len(self.phases) - 1 and bool(self.session.phase_end)

    def count_step(self, loss: float, hits: Tensor, samples: int) -> None:
        """Add up a step; `hits` stay on their device until the sums are settled."""
        self._hits = hits if self._hits is None else self._hits + hits
        self.sums.loss_sum += loss * samples
        self.sums.seen += samples
        self.session.after_step()

    def settle_sums(self) -> None:
        """Bring the hits of the epoch under way into the sums."""
        if self._hits is not None:
            self.sums.correct += int(self._hits)
            self._hits = None

    def end_epoch(self, rates: tuple[float, ...], found: Evaluation, train_seconds: float) -> None:
        """Record an epoch with its validation metrics.

        Args:
            rates: learning rates at its end, highest first.
        """
        at, sums = self.position, self.sums
        seconds = at.epoch_seconds
        self.session.end_epoch(found.headline())
        record = EpochRecord(
            epoch=at.epochs,
            lr=rates[0],
            train_loss=sums.loss_sum / sums.seen,
            train_accuracy=sums.correct / sums.seen,
            validation=found,
            seconds=seconds,
            samples_per_second=sums.seen / train_seconds,
            best=at.best_epoch == at.epochs,
            phase=at.phase + 1,
            rates=rates,
            spent=sums.spent,
        )
        self.sums = Sums(pipeline_seconds=sums.pipeline_seconds)
        self.history.append(record)

    def end_phase(self, proof: Proof) -> None:
        """Record what the present phase gave."""
        at = self.position
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.phase_history[at.phase :] = [
            PhaseRecord(
                phase=at.phase + 1,
                name=self.phase.label(at.phase + 1),
                trained=trained,
                epochs=at.phase_epochs,
                steps=at.phase_steps,
                feed_seconds=self.sums.pipeline_seconds,
                seconds=at.phase_seconds,
                plain_step_seconds=dict(enumerate(self.plain_step_seconds)).get(at.phase, 0.0),
                ended=self.session.phase_end,
                best_epoch=at.phase_best_epoch,
                best_figure=at.phase_best_figure,
                frozen=Proven(proof.tensors, proof.nbytes, str(proof.fingerprint)),
            )
        ]
        self.sums = Sums()

    def _epochs_of(self, phase: Phase) -> int | None:
        steps = self.session.steps_per_epoch
        if phase.steps is not None and steps is not None:
            by_steps = -(-phase.steps // steps)
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
