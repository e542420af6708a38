"""What an epoch and a phase gave: records that a run keeps in memory and writes into its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Self, final

from pydantic import AliasChoices, Field, TypeAdapter

from frostline.tables import Table, columns
from frostline.tasks import Metrics
from frostline.units import format_count, format_seconds


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
        train: by name, means per sample over the epoch while the weights moved: `loss`, which was
            minimised, and what the task sums up.
        validation: as the task summarises it.
        seconds: training and validation together.
        samples_per_second: of training.
        best: whether the monitored metric is the best so far.
        phase: to which it belongs, counted from 1.
        rates: the learning rates of all parameters at the epoch's end, highest first, each once.
        spent: where the seconds went; None in records of before it was noted.
    """

    epoch: int
    lr: float
    train: Mapping[str, float]
    validation: Metrics
    seconds: float
    samples_per_second: float
    best: bool
    phase: int = 1
    rates: tuple[float, ...] = ()
    spent: Spent | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON, to `read` again."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        spent = None if self.spent is None else asdict(self.spent)
        return {**content, "validation": self.validation.as_dict(), "spent": spent}

    @classmethod
    def read(cls, content: Mapping[str, Any], *, like: Metrics) -> Self:
        """From what `as_dict` gave; also as version 0.1 wrote it.

        Args:
            like: metrics of the same task.
        Raises:
            KeyError, ValueError, TypeError: something is missing or of another kind.
        """
        given = dict(content)
        if "train" not in given:
            given["train"] = {name: given.pop(f"train_{name}") for name in ("loss", "accuracy")}
        given["validation"] = like.read(given["validation"])
        given["rates"] = tuple(given["rates"])
        given["spent"] = None if given["spent"] is None else Spent(**given["spent"])
        return cls(**given)

    def line(self) -> dict[str, object]:
        """A line of `metrics.jsonl`; `lrs` where parameters have several learning rates."""
        return {
            "epoch": self.epoch,
            "phase": self.phase,
            "lr": self.lr,
            **{f"train_{name}": value for name, value in self.train.items()},
            **{f"val_{name}": value for name, value in self.validation.headline().items()},
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "best": self.best,
            **({"lrs": list(self.rates)} if len(self.rates) > 1 else {}),
            **(asdict(self.spent) if self.spent is not None else {}),
        }


@final
@dataclass(frozen=True, slots=True)
class Proven:
    """How much was compared and found unmoved, with the content hash of it."""

    tensors: int
    nbytes: Annotated[int, Field(validation_alias=AliasChoices("nbytes", "bytes"))]
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
        best_epoch: of this phase, counted through the run; 0 where no metric was a number.
        best_metric: the value that was monitored, of that epoch; `best_figure` in files.
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
    best_metric: Annotated[float | None, Field(alias="best_figure")]
    frozen: Proven

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON, which pydantic reads again."""
        content: dict[str, object] = TypeAdapter(PhaseRecord).dump_python(self, by_alias=True)
        return content


def phase_table(records: Sequence[PhaseRecord]) -> Table:
    """What each phase trained, took and gave."""
    names = ("phase", "trained", "epochs", "features", "epochs' time", "best", "ended by")
    rows = tuple(
        (
            f"{record.phase} {record.name}",
            format_count(record.trained),
            str(record.epochs),
            format_seconds(record.feed_seconds),
            format_seconds(record.seconds),
            "-" if record.best_metric is None else f"{record.best_metric:.3f}",
            record.ended,
        )
        for record in records
    )
    return Table(columns(*names, right=5), rows)
