"""What a probe found: each stage's score and cost, and after which to cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from shlex import join
from typing import final

from frostline.estimates.results import busy_note
from frostline.tables import Displayed, Table, columns, hanging
from frostline.units import format_bytes, format_count, format_seconds
from frostline.wording import either

RULE = (
    "The stage to cut after is the earliest whose score is not clearly lower than the best one's "
    "(one-sided, at 5 %): what lies above adds nothing to speak of as it is, so it may train; what "
    "lies below serves as it is."
)
# The distance of the one-sided 95 % point, as a share of the width of a two-sided 95 % interval.
_ONE_SIDED = 1.645 / (2 * 1.960)
_SHOWN = 0.0005  # half of the last digit in the table


@final
@dataclass(frozen=True, slots=True)
class StageScore:
    """How well the features of one stage serve, and what freezing up to it costs.

    Attributes:
        stage: its number, from 0, as in the selector `stage:0`.
        name: of its modules.
        shape: of one sample's features, as the next stage reads them; on the example.
        pooled: over what they were averaged for the probe: `none`, `positions` of a map, `tokens`,
            or `masked tokens`, those that are none of the padding's.
        width: of the vector.
        score: of the probe on the validation data: accuracy, or R2.
        low, high: its 95 % interval.
        feature_bytes: of one sample's features as they would be stored, on average.
        stored_bytes: of all of them, to train on and to validate.
        step_seconds: of a training step on stored features, of `Probe.batch_size` samples.
        epoch_seconds: of an epoch on stored features: its steps, and validating.
        memory_bytes: of a step on stored features.
        train: selector of what trains if all up to here is frozen.
    """

    stage: int
    name: str
    shape: tuple[int, ...]
    pooled: str
    width: int
    score: float
    low: float
    high: float
    feature_bytes: int
    stored_bytes: int
    step_seconds: float
    epoch_seconds: float
    memory_bytes: int
    train: str


@final
@dataclass(frozen=True)
class Probe(Displayed):
    """What a probe found; printing it shows a table.

    Attributes:
        model: its class.
        metric: `accuracy` or `R2`.
        stages: in the order of the forward pass; all but the head.
        samples: that the probes were fitted on, and judged on.
        form: in which the features were computed, in words, with the error that was measured.
        computed: samples whose features this call computed; with 0 all were in the store.
        left_out: lines on stages that give no features.
        core_share: of a processor core that this thread had while steps were timed, from 0 to 1.
        command: the words of a command that trains what is above the stage to cut after, where
            they are known.

    Example:
        >>> probe = fl.probe(model, data, data)
        >>> [stage.name for stage in probe.stages], probe.cut_after.train
        (['backbone.0, backbone.1'], 'stage:1..-1')
    """

    model: str
    metric: str
    stages: tuple[StageScore, ...]
    samples: tuple[int, int]
    batch_size: int
    form: str
    computed: int
    left_out: tuple[str, ...] = ()
    core_share: float = 1.0
    command: tuple[str, ...] = ()

    @property
    def best(self) -> StageScore:
        """Of the highest score; of several the latest, which is the cheapest to freeze up to."""
        return max(self.stages, key=lambda one: (one.score, one.stage))

    @property
    def cut_after(self) -> StageScore:
        """The earliest stage whose score is not clearly lower than the best one's.

        Lower by 1.645 standard errors, by the width of its interval: one-sided, at 5 %; and by as
        much as the table shows. From there on the layers add nothing to speak of as they are: what
        lies below serves as it is, what lies above may train.
        """
        best = self.best
        least = best.score - max(_ONE_SIDED * (best.high - best.low), _SHOWN)
        return next(one for one in self.stages if one.score >= least)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            **asdict(self),
            "best": self.best.stage,
            "cut_after": self.cut_after.stage,
            "train": self.cut_after.train,
        }

    def tables(self) -> Iterator[Table | str]:
        """Tables and lines, in the order in which they are read."""
        yield self._table()
        if busy := busy_note(self.core_share):
            yield hanging(busy, indent=0)
        yield hanging(f"{RULE} Here: {self._named()}.", indent=0)
        yield self._next()

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def _parts(self) -> Iterator[Table | str]:
        return self.tables()

    def _table(self) -> Table:
        chosen = self.cut_after
        rows = tuple(
            (
                f"{'>' if one is chosen else ' '} {one.stage} {_short(one.name)}",
                f"{one.score:.3f} {one.low:.2f}-{one.high:.2f}",
                format_bytes(one.feature_bytes),
                format_bytes(one.stored_bytes),
                format_seconds(one.epoch_seconds),
                format_bytes(one.memory_bytes),
            )
            for one in self.stages
        )
        train, validation = self.samples
        title = (
            f"{self.model} by stage: {format_count(train)} samples to train on, "
            f"{format_count(validation)} to validate"
        )
        told = f"{self.metric}, 95 %"
        heads = columns("up to", told, "a sample", "in all", "epoch", "memory")
        return Table(heads, rows, title, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        pooled = {
            "positions": "maps are averaged over their positions",
            "tokens": "tokens are averaged",
            "masked tokens": "tokens that are no padding are averaged",
            "none": "vectors are taken as they are",
        }
        how = "; ".join(pooled[kind] for kind in dict.fromkeys(one.pooled for one in self.stages))
        notes = (
            f"A linear probe on what each stage hands to the next: {how}.",
            "Beside it: what its features take, and an epoch and the memory of training all above "
            f"on them, in batches of {self.batch_size} with AdamW.",
            f"Computed in {self.form}.",
            *self.left_out,
        )
        for note in notes:
            yield from hanging(note, indent=2).splitlines()

    def _named(self) -> str:
        chosen, best = self.cut_after, self.best
        if chosen is best:
            return f"stage {chosen.stage} ({chosen.name}), the best one"
        return (
            f"stage {chosen.stage} ({chosen.name}), {chosen.score:.3f} where stage {best.stage} "
            f"has {best.score:.3f}"
        )

    def _next(self) -> str:
        train, typed = self.cut_after.train, join(self.command)
        return f"Next: {either(f'fl.train_only(model, {train!r})', typed)}"


def _short(name: str) -> str:
    """`encoder.layer.3, encoder.norm` -> `layer.3, norm`: numbers with what they count."""
    paths = (path.split(".") for path in name.split(", "))
    return ", ".join(".".join(p[-2 if p[-1].isdecimal() else -1 :]) for p in paths)
