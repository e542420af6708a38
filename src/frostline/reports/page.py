"""The page of one run: its facts, drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from frostline.pages.charts import BESIDE, HEIGHT, Bar, LineChart, line_chart, upright_bars
from frostline.pages.rendering import render
from frostline.records import EpochLine, PhaseRecord, ResultNotes
from frostline.records.certainty import Calibration, accuracy_interval, calibration
from frostline.records.spending import is_plain, spending
from frostline.reports.facts import ReportFacts
from frostline.tasks import ClassMetrics, class_metrics, label

_PAIRS = 20
_TABLE_EPOCHS = 200
_WORST_CLASSES = 30
_SPENT_WORDS = {
    "preparing": "Preparing: tracing the frost line, timing forms, looking up and writing features",
    "decode": "Decode: waiting for samples while features were computed",
    "prefix": "Prefix: computing the frozen part",
    "suffix": "Suffix: steps through what is trained",
    "idle": "Idle: training waited for its next batch",
    "validation": "Validation after each epoch",
    "rest": "Rest: saving, hashing, the first look at the data",
}


def render_report(facts: ReportFacts) -> str:
    """The report as one HTML page, below 5 MB for any run."""
    records = facts.records
    result = records.result or _from_predictions(facts)
    found = calibration(records.judged) if records.judged else None
    return render(
        "report.html",
        facts=facts,
        records=records,
        result=result,
        interval=accuracy_interval(result.metrics, result.samples) if result else None,
        best=records.best,
        # Not by jinja's sum(attribute=...), which would first take the word for an index.
        trained_nbytes=sum(tensor.nbytes for tensor in facts.trained.values()),
        charts=_charts(records.epochs, records.result.phases if records.result else ()),
        epochs=_some(records.epochs),
        trained=tuple(dict.fromkeys(name for line in records.epochs for name in line.train)),
        validated=tuple(dict.fromkeys(n for line in records.epochs for n in line.validation)),
        nan=math.nan,
        pairs=_confused_pairs(result) if result else (),
        classes=_worst_first(result) if result else (),
        calibration=found,
        reliability=_reliability(found) if found else (),
        spent=spending(records),
        spent_words=_SPENT_WORDS,
        is_plain=is_plain(records),
        notices=tuple(dict.fromkeys(n for s in records.sessions for n in s.notices)),
    )


def _from_predictions(facts: ReportFacts) -> ResultNotes | None:
    """Metrics of a run that has not ended, from what its best epoch made of each sample."""
    judged, best = facts.records.judged, facts.records.best
    if judged is None or best is None or judged.epoch != best.epoch:
        return None
    confusion = judged.confusion(len(facts.classes))
    per_class = class_metrics(confusion, facts.classes)[1]
    counts = tuple(map(tuple, confusion.tolist()))
    return ResultNotes(best.epoch, best.validation, len(judged), per_class, counts)


def _charts(epochs: Sequence[EpochLine], phases: Sequence[PhaseRecord]) -> list[LineChart]:
    """Metrics and learning rate."""
    if not epochs:
        return []
    numbers = [line.epoch for line in epochs]
    marks = _marks(epochs, phases)
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
