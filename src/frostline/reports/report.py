"""What a report tells of a run, as data and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, final

from torch import Tensor

from frostline.pages.charts import BESIDE, HEIGHT, Bar, LineChart, line_chart, upright_bars
from frostline.pages.rendering import render, save_page
from frostline.records import EpochLine, Judged, ResultNotes, RunRecords
from frostline.records.certainty import Calibration, accuracy_interval, calibration
from frostline.records.spending import PARTS, is_plain, spending
from frostline.tasks import ClassMetrics, class_metrics, label

State = Literal["proven", "broken", "unproven"]

_PAIRS = 20
_TABLE_EPOCHS = 200
_WORST_CLASSES = 30


@final
@dataclass(frozen=True, slots=True)
class Promise:
    """Whether what was to stay frozen did.

    Attributes:
        words: in a sentence: what was proven, what broke, or why it cannot be known.
        checks: what was looked at.
        names: tensors for which it does not hold.
    """

    state: State
    words: str
    checks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """A picture beside what was made of it.

    Attributes:
        picture: a data URI; empty where there is none, and `why_not` says why.
        target, predicted: classes, or what a task without classes says and should have.
        chance: the probability of `predicted`; None where there is none.
        target_chance: that of `target`.
        text: what was read, in the place of a picture.
    """

    file: str
    picture: str
    why_not: str
    target: str
    predicted: str
    chance: float | None = None
    target_chance: float = 0.0
    text: str = ""


@final
@dataclass(frozen=True, slots=True)
class RunReport:
    """All that the report of a run tells.

    Attributes:
        name: the run folder's.
        made: when this report was made, for people.
        settings: what was asked, by the setting's word.
        freezing: how the frozen part was chosen, in words.
        frozen: how many tensors stayed frozen in all phases, by module.
        trained: what the delta holds, by name.
        pictures_in: the folder that names of pictures are below of; empty where they are whole.
        repeat: a command line that trains this run again; empty where there is none.
        use: command lines and Python lines that use the model.
    """

    name: str
    folder: str
    made: str
    classes: tuple[str, ...]
    settings: Mapping[str, str]
    freezing: tuple[str, ...]
    promise: Promise
    records: RunRecords
    frozen: Mapping[str, int]
    trained: Mapping[str, Tensor]
    pictures_in: str
    mistakes: tuple[Shown, ...]
    doubts: tuple[Shown, ...]
    repeat: str
    repeat_notes: tuple[str, ...]
    use_shell: str
    use_python: str

    @property
    def page(self) -> str:
        """The report as one HTML page that needs no other file, below 5 MB for any run."""
        records = self.records
        return render(
            "report.html",
            report=self,
            records=records,
            **judged_parts(records.result or _from_predictions(self), records.judged),
            pictures_in=self.pictures_in,
            mistakes=self.mistakes,
            doubts=self.doubts,
            tables=records.result.tables if records.result else (),
            best=records.best,
            # Not by jinja's sum(attribute=...), which would first take the word for an index.
            trained_nbytes=sum(tensor.nbytes for tensor in self.trained.values()),
            charts=course_charts(records),
            epochs=_some(records),
            trained=tuple(dict.fromkeys(name for line in records.epochs for name in line.train)),
            validated=tuple(dict.fromkeys(n for line in records.epochs for n in line.validation)),
            nan=math.nan,
            spent=spending(records),
            spent_words=PARTS,
            is_plain=is_plain(records),
            notices=tuple(dict.fromkeys(n for s in records.sessions for n in s.notices)),
        )

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all.

        Raises:
            OutputError: as `save_page`.
        """
        save_page(self.page, path, force=force)

    def as_dict(self) -> dict[str, object]:
        """Its numbers as plain data for JSON."""
        records, best = self.records, self.records.best
        judged, spent = records.judged, spending(records)
        return {
            "run": self.folder,
            "promise": asdict(self.promise),
            "epochs": len(records.epochs),
            "best_epoch": best.epoch if best else None,
            **(best.validation if best else {}),
            "calibration_error": calibration(judged).expected_error if judged else None,
            "seconds": {**spent.parts, "total": spent.total} if spent else None,
            "plain_seconds": spent.plain if spent else None,
            "delta_bytes": records.delta_bytes,
            "warnings": records.data.findings if records.data else None,
            "repeat": self.repeat,
            "lacks": records.lacks,
        }


def judged_parts(result: ResultNotes | None, judged: Judged | None) -> dict[str, object]:
    """What a page says of metrics, classes and single samples, for `judged.html`."""
    found = calibration(judged) if judged else None
    return {
        "result": result,
        "interval": accuracy_interval(result.metrics, result.samples) if result else None,
        "pairs": _confused_pairs(result) if result else (),
        "classes": _worst_first(result) if result else (),
        "calibration": found,
        "reliability": _reliability(found) if found else (),
        "wrong": int((~judged.hits).sum()) if judged else 0,
    }


def _from_predictions(report: RunReport) -> ResultNotes | None:
    """Metrics of a run that has not ended, from what its best epoch made of each sample."""
    judged, best = report.records.judged, report.records.best
    if judged is None or best is None or judged.epoch != best.epoch:
        return None
    return result_of(judged, best.validation, report.classes)


def result_of(judged: Judged, metrics: Mapping[str, float], classes: Sequence[str]) -> ResultNotes:
    """`metrics`, and what single predictions make of the classes."""
    confusion = judged.confusion(len(classes))
    per_class = class_metrics(confusion, classes)[1]
    counts = tuple(map(tuple, confusion.tolist()))
    return ResultNotes(judged.epoch, metrics, len(judged), per_class, counts)


def course_charts(records: RunRecords) -> list[LineChart]:
    """Metrics and learning rate."""
    epochs, marks = records.epochs, _marks(records)
    if not epochs:
        return []
    numbers = [line.epoch for line in epochs]
    made = [line_chart(title, numbers, series, marks=marks) for title, series in _courses(epochs)]
    rates = [("highest", "a", [max(line.lrs) for line in epochs])]
    if any(len(line.lrs) > 1 for line in epochs):
        rates.append(("lowest", "b", [min(line.lrs) for line in epochs]))
    return [*made, line_chart("Learning rate", numbers, rates, marks=marks)]


def _courses(
    epochs: Sequence[EpochLine],
) -> Iterator[tuple[str, list[tuple[str, str, list[float]]]]]:
    """A title and lines of name, style and values for each chart of metrics."""
    names = dict.fromkeys(name for line in epochs for name in (*line.train, *line.validation))
    for name in names:
        if BESIDE.get(name) in names:
            continue
        lines = [("training", "b", [line.train.get(name, math.nan) for line in epochs])]
        beside = [other for other, first in BESIDE.items() if first == name and other in names]
        for of, style in zip((name, *beside), "acd", strict=False):
            text = "validation" if of == name else f"validation {label(of)}"
            lines.append((text, style, [line.validation.get(of, math.nan) for line in epochs]))
        title = label(name)
        known = [one for one in lines if not all(map(math.isnan, one[2]))]
        yield title[:1].upper() + title[1:], known


def _marks(records: RunRecords) -> list[tuple[float, str, str]]:
    phases = records.result.phases if records.result else ()
    names = {phase.phase: phase.name for phase in phases}
    marks = [
        (after.epoch - 0.5, names.get(after.phase, f"phase {after.phase}"), "phase")
        for before, after in pairwise(records.epochs)
        if before.phase != after.phase
    ]
    return [*marks, (records.best.epoch, "best", "best")] if records.best else marks


def _some(records: RunRecords) -> list[EpochLine]:
    """All epochs, or of many the best, the last and some between."""
    every = max(1, -(-len(records.epochs) // _TABLE_EPOCHS))
    kept = (records.best, *records.epochs[-1:])
    return [line for n, line in enumerate(records.epochs) if n % every == 0 or line in kept]


def _confused_pairs(result: ResultNotes) -> list[tuple[str, str, int, float]]:
    """Which class is most often taken for which other, how often, and that share of the class."""
    names = [line.name for line in result.per_class]
    found = [
        (names[true], names[predicted], count, count / sum(row))
        for true, row in enumerate(result.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(found, key=lambda pair: (-pair[2], -pair[3], *pair[:2]))[:_PAIRS]


def _worst_first(result: ResultNotes) -> tuple[ClassMetrics, ...]:
    """All classes in their order; of many, the worst ones first."""
    if len(result.per_class) <= _WORST_CLASSES:
        return result.per_class
    return tuple(sorted(result.per_class, key=lambda line: (line.f1, line.name)))


def _reliability(found: Calibration) -> tuple[tuple[Bar, ...], tuple[Bar, ...]]:
    """Bars of accuracy, and below them how many samples there are."""
    most = max(part.samples for part in found.bins)
    texts = [
        f"{part.low:.2f} to {part.high:.2f}: {part.samples} samples, mean probability "
        f"{part.confidence:.3f}, accuracy {part.accuracy:.3f}"
        for part in found.bins
    ]
    above = upright_bars([part.accuracy for part in found.bins], texts, top=12, bottom=150)
    below = upright_bars(
        [part.samples / most for part in found.bins], texts, top=HEIGHT - 48, bottom=HEIGHT - 20
    )
    return above, below
