"""A training run as it goes: its session, its records, and the hooks that see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from frostline.devices import Compute
from frostline.freezing import Proof
from frostline.records import EpochRecord, PhaseRecord, Proven, Spent
from frostline.session import Position, Session
from frostline.tasks import Metrics, Predictions

StepSums = Callable[[], Mapping[str, Tensor]]
"""Gives the task's sums over a step's batch."""

_AT_A_TIME = 16


@final
@dataclass
class Sums:
    """What adds up over the epoch that is under way, and seconds before the phase's first one.

    Attributes:
        of_task: sums of the task, by name; settled when they are asked for.
    """

    loss_sum: float = 0.0
    of_task: dict[str, int | float] = field(default_factory=dict)
    seen: int = 0
    spent: Spent = field(default_factory=Spent)
    pipeline_seconds: float = 0.0


@final
@dataclass
class Training:
    """A training run as it goes: what hooks see, and what a resumed run starts from.

    Attributes:
        session: the phases, and where in them the run is.
        compute: where it goes on, and in which precision.
        found: what the model made of the validation data at the end of the last epoch, for hooks
            that are called with it; not kept longer.
        stopped: why a hook stopped the run; empty while none did.
    """

    session: Session
    compute: Compute = field(default_factory=Compute)
    history: list[EpochRecord] = field(default_factory=list)
    phase_history: list[PhaseRecord] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    found: Predictions | None = None
    stopped: str = ""
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _late: list[StepSums] = field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        return self.session.model

    @property
    def position(self) -> Position:
        return self.session.position

    @property
    def planned_epochs(self) -> int | None:
        """Epochs of the whole run at most, counting what has ended; None where no one knows."""
        at, each = self.position, self.session.steps_per_epoch or 1
        ahead = [phase.total_steps(each) for phase in self.session.phases[at.phase :]]
        if None in ahead:
            return None
        return at.epochs - at.phase_epochs + sum(-(-steps // each) for steps in ahead if steps)

    @property
    def is_over(self) -> bool:
        """Whether the last phase has ended."""
        return self.position.phase == len(self.session.phases) - 1 and bool(self.session.phase_end)

    def stop(self, why: str) -> None:
        """End the run after the epoch under way, as a whole run: best weights, proof and report.

        No later phase is begun. A run folder can be resumed, and then goes on to the bits that it
        would have ended with. To end it within an epoch, raise `KeyboardInterrupt`: what was
        trained is kept to resume from, and there is no result.

        Args:
            why: for people, in the record of the phase.
        """
        self.stopped = why or "by a hook"

    def count_step(self, loss: float, sums: StepSums, samples: int) -> None:
        """Add up a step of all processes; the task's `sums` stay on their device until settled.

        They are taken for some steps at a time, in the order of these: a few small operations
        after the large ones of a step take five times as long as after each other.
        """
        self._late.append(sums)
        if len(self._late) >= _AT_A_TIME:
            self._add_late()
        self.sums.loss_sum += loss * samples
        self.sums.seen += samples
        self.session.after_step()

    def _add_late(self) -> None:
        for sums in self._late:
            for name, value in sums().items():
                self._sums[name] = self._sums.get(name, self.sums.of_task.get(name, 0)) + value
        self._late.clear()

    def settle_sums(self) -> None:
        """Bring the task's sums of the epoch under way into `sums`.

        They also go on where they are: a resumed run then adds the same numbers in the same order.
        """
        self._add_late()
        self.sums.of_task |= {name: value.item() for name, value in self._sums.items()}

    def end_epoch(self, rates: tuple[float, ...], found: Metrics, train_seconds: float) -> None:
        """Record an epoch with its validation metrics.

        Args:
            rates: learning rates at its end, highest first.
        """
        at, sums = self.position, self.sums
        seconds = at.epoch_seconds
        self.session.end_epoch(found)
        trained: dict[str, float] = {"loss": 0.0, **sums.of_task}
        trained |= {"loss": sums.loss_sum}
        samples = sums.seen
        record = EpochRecord(
            epoch=at.epochs,
            lr=rates[0],
            train={name: value / samples for name, value in trained.items()},
            validation=found,
            seconds=seconds,
            samples_per_second=samples / train_seconds,
            best=at.best.epoch == at.epochs,
            phase=at.phase + 1,
            rates=rates,
            spent=sums.spent,
        )
        self.sums, self._sums = Sums(pipeline_seconds=sums.pipeline_seconds), {}
        self.history.append(record)

    def end_phase(self, proof: Proof) -> None:
        """Record what the present phase gave."""
        at = self.position
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.phase_history[at.phase :] = [
            PhaseRecord(
                phase=at.phase + 1,
                name=self.session.phase.label(at.phase + 1),
                trained=trained,
                epochs=at.phase_epochs,
                steps=at.phase_steps,
                feed_seconds=self.sums.pipeline_seconds,
                seconds=at.phase_seconds,
                plain_step_seconds=self.session.planned.step_seconds[at.phase],
                ended=self.session.phase_end or f"stopped: {self.stopped}",
                best_epoch=at.phase_best.epoch,
                best_metric=at.phase_best.value,
                frozen=Proven(proof.tensors, proof.nbytes, str(proof.fingerprint)),
            )
        ]
        self.sums = Sums()


class Hook:
    """What a run may call out to; each method does nothing unless it is written.

    Hooks are called in the order in which they were given, after the run's own. What a hook raises
    ends the run: what was trained is kept in the run's folder, to be resumed.

    `training` has `model`, `position` (epochs, steps and phase so far), `history` (a record for
    each epoch), `phase_history`, `session` with its `optimizer`, and `stop(why)`.

    Example:
        >>> class Enough(fl.Hook):
        ...     def on_epoch(self, training):
        ...         if training.history[-1].validation["accuracy"] >= 0.5:
        ...             training.stop("half of them are right")
        >>> fl.fit(model, data, data, epochs=2, lr=1e-2, hooks=[Enough()]).proof.tensors
        7
    """

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
