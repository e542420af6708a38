"""The page of one run: its facts, drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from frostline.pages.charts import BESIDE, HEIGHT, Bar, LineChart, line_chart, upright_bars
from frostline.pages.facts import ReportFacts
from frostline.pages.rendering import render
from frostline.records import EpochLine, PhaseRecord, ResultNotes
from frostline.records.certainty import Calibration, calibration, share_interval
from frostline.records.spending import Spending, is_plain, spending
from frostline.tasks import ClassMetrics, class_metrics, label

MATRIX_CLASSES = 20  # a matrix of more is not read any more, and the pairs are listed instead
_PAIRS = 20
_TABLE_EPOCHS = 200
_SHADES = 8
_WORST_CLASSES = 30


@final
@dataclass(frozen=True, slots=True)
class _Cell:
    count: int
    shade: int  # 0 to 8 by its share of the row
    is_hit: bool


@final
@dataclass(frozen=True, slots=True)
class _ConfusedPair:
    true: str
    predicted: str
    count: int
    share: float


def render_report(facts: ReportFacts) -> str:
    """The report as one HTML page, below 5 MB for any run."""
    records = facts.records
    result = records.result or _from_predictions(facts)
    spent = spending(records)
    return render(
        "report.html",
        facts=facts,
        records=records,
        result=result,
        interval=_interval(result),
        best=records.best,
        phases=_phases(facts),
        charts=_charts(records.epochs, _phases(facts)),
        epochs=_some(records.epochs),
        trained=tuple(dict.fromkeys(name for line in records.epochs for name in line.train)),
        validated=tuple(dict.fromkeys(n for line in records.epochs for n in line.validation)),
        nan=math.nan,
        matrix=_matrix(result),
        pairs=_pairs(result),
        classes=_worst_first(result),
        calibration=_calibrated(facts),
        reliability=_reliability(_calibrated(facts)),
        spent=spent,
        spent_words=SPENT_WORDS,
        bars=_time_bars(spent),
        is_plain=is_plain(records),
        notices=tuple(dict.fromkeys(n for s in records.sessions for n in s.notices)),
    )


SPENT_WORDS = {
    "preparing": "Preparing: tracing the frost line, timing forms, looking up and writing features",
    "decode": "Decode: waiting for samples while features were computed",
    "prefix": "Prefix: computing the frozen part",
    "suffix": "Suffix: steps through what is trained",
    "idle": "Idle: training waited for its next batch",
    "validation": "Validation after each epoch",
    "rest": "Rest: saving, hashing, the first look at the data",
}


def _interval(result: ResultNotes | None) -> tuple[float, float] | None:
    """Of the accuracy, 95 %."""
    if result is None or not result.samples or "accuracy" not in result.metrics:
        return None
    return share_interval(round(result.metrics["accuracy"] * result.samples), result.samples)


def _phases(facts: ReportFacts) -> tuple[PhaseRecord, ...]:
    return facts.records.result.phases if facts.records.result else ()


def _from_predictions(facts: ReportFacts) -> ResultNotes | None:
    """Metrics of a run that has not ended, from what its best epoch made of each sample."""
    judged, best = facts.records.judged, facts.records.best
    if judged is None or best is None or judged.epoch != best.epoch:
        return None
    confusion = judged.confusion(len(facts.classes))
    per_class = class_metrics(confusion, facts.classes)[1]
    counts = tuple(map(tuple, confusion.tolist()))
    return ResultNotes(best.epoch, best.validation, len(judged), per_class, counts)


def _charts(
    epochs: Sequence[EpochLine], phases: Sequence[PhaseRecord]
) -> tuple[tuple[LineChart, tuple[tuple[str, str], ...]], ...]:
    """Metrics and learning rate, each with its legend of style and name."""
    if not epochs:
        return ()
    numbers = [line.epoch for line in epochs]
    marks = _marks(epochs, phases)
    made = [line_chart(title, numbers, series, marks=marks) for title, series in _courses(epochs)]
    rates = [("highest", "a", [max(line.lrs) for line in epochs])]
    if any(len(line.lrs) > 1 for line in epochs):
        rates.append(("lowest", "b", [min(line.lrs) for line in epochs]))
    made.append(line_chart("Learning rate", numbers, rates, marks=marks))
    return tuple((chart, tuple((line.style, line.name) for line in chart.lines)) for chart in made)


def _courses(
    epochs: Sequence[EpochLine],
) -> Iterator[tuple[str, list[tuple[str, str, list[float]]]]]:
    """A title and lines of name, style and values for each chart of metrics."""
    names = dict.fromkeys(name for line in epochs for name in (*line.train, *line.validation))
    for name in names:
        beside = [other for other, first in BESIDE.items() if first == name and other in names]
        if BESIDE.get(name) in names:
            continue
        lines = [
            ("training", "b", [line.train.get(name, math.nan) for line in epochs]),
            *(
                (
                    "validation" if of == name else f"validation {label(of)}",
                    style,
                    [line.validation.get(of, math.nan) for line in epochs],
                )
                for of, style in zip((name, *beside), "acd", strict=False)
            ),
        ]
        title = label(name)
        yield (
            title[:1].upper() + title[1:],
            [one for one in lines if not all(map(math.isnan, one[2]))],
        )


def _marks(
    epochs: Sequence[EpochLine], phases: Sequence[PhaseRecord]
) -> list[tuple[float, str, str]]:
    names = {phase.phase: phase.name for phase in phases}
    marks = [
        (after.epoch - 0.5, names.get(after.phase, f"phase {after.phase}"), "phase")
        for before, after in pairwise(epochs)
        if before.phase != after.phase
    ]
    best = [line for line in epochs if line.best]
    return [*marks, (best[-1].epoch, "best", "best")] if best else marks


def _some(epochs: Sequence[EpochLine]) -> tuple[EpochLine, ...]:
    """All epochs, or of many the best, the last and some between."""
    every = -(-len(epochs) // _TABLE_EPOCHS)
    best = [line.epoch for line in epochs if line.best][-1:]
    return tuple(
        line
        for place, line in enumerate(epochs)
        if place % max(1, every) == 0 or line.epoch in best or line is epochs[-1]
    )


def _matrix(result: ResultNotes | None) -> tuple[tuple[_Cell, ...], ...]:
    if result is None or len(result.confusion) > MATRIX_CLASSES:
        return ()
    return tuple(
        tuple(
            _Cell(count, math.ceil(_SHADES * count / (sum(row) or 1)), true == predicted)
            for predicted, count in enumerate(row)
        )
        for true, row in enumerate(result.confusion)
    )


def _pairs(result: ResultNotes | None) -> tuple[_ConfusedPair, ...]:
    """Which classes are most often taken for which others."""
    if result is None:
        return ()
    names = [line.name for line in result.per_class]
    found = [
        _ConfusedPair(names[true], names[predicted], count, count / sum(row))
        for true, row in enumerate(result.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return tuple(sorted(found, key=lambda p: (-p.count, -p.share, p.true, p.predicted))[:_PAIRS])


def _worst_first(result: ResultNotes | None) -> tuple[ClassMetrics, ...]:
    """All classes in their order; of many, the worst ones first."""
    if result is None:
        return ()
    if len(result.per_class) <= _WORST_CLASSES:
        return result.per_class
    return tuple(sorted(result.per_class, key=lambda line: (line.f1, line.name)))


def _calibrated(facts: ReportFacts) -> Calibration | None:
    judged = facts.records.judged
    return None if judged is None else calibration(judged)


def _reliability(found: Calibration | None) -> tuple[tuple[Bar, ...], tuple[Bar, ...]]:
    """Bars of accuracy, and below them how many samples there are."""
    if found is None:
        return (), ()
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


def _time_bars(spent: Spending | None) -> tuple[tuple[str, float, float], ...]:
    """Name, seconds and width of each part of the time."""
    if spent is None:
        return ()
    most = max(seconds for _, seconds in spent.parts) or 1.0
    return tuple((name, seconds, round(100 * seconds / most, 1)) for name, seconds in spent.parts)
