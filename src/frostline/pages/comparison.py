"""The page of several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from frostline.pages.charts import LineChart, line_chart
from frostline.pages.rendering import render
from frostline.records import EpochLine, RunRecords
from frostline.records.intervals import Paired
from frostline.records.pairing import Sameness

_STYLES = ("a", "b", "c", "d", "e", "f")


@final
@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run among several.

    Attributes:
        name: short, and no other run's here.
        accuracy, macro_f1, loss: of the best epoch; None where none is known.
        interval: of the accuracy, 95 %.
        seconds: of the whole run; of its epochs where no more was noted; None if nothing was.
        frozen_share: of all bytes, those that stayed frozen throughout; None if not known.
        against_first: paired with the first run, where samples are the same.
        validation, training: whether the samples are those of the first run.
    """

    name: str
    folder: str
    records: RunRecords
    accuracy: float | None
    macro_f1: float | None
    loss: float | None
    interval: tuple[float, float] | None
    seconds: float | None
    frozen_share: float | None
    against_first: Paired | None
    validation: Sameness
    training: Sameness


@final
@dataclass(frozen=True, slots=True)
class Differing:
    """A setting that is not the same in all runs, and its value in each."""

    name: str
    values: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Compared:
    """All that a comparison tells.

    Attributes:
        warnings: why figures may not be comparable.
    """

    runs: tuple[ComparedRun, ...]
    differing: tuple[Differing, ...]
    warnings: tuple[str, ...]
    made: str


def render_comparison(compared: Compared) -> str:
    """The comparison as one HTML page."""
    return render(
        "compare.html",
        compared=compared,
        charts=(
            _chart(compared, "Validation accuracy", lambda line: line.val_accuracy),
            _chart(compared, "Validation loss", lambda line: line.val_loss),
        ),
    )


def _chart(
    compared: Compared, title: str, figure: Callable[[EpochLine], float]
) -> tuple[LineChart, tuple[tuple[str, str], ...]]:
    longest = max((len(run.records.epochs) for run in compared.runs), default=0)
    series = []
    for place, run in enumerate(compared.runs):
        values = [figure(line) for line in run.records.epochs]
        if values:
            style = _STYLES[place % len(_STYLES)]
            padded = [*values, *[math.nan] * (longest - len(values))]
            series.append((run.name, style, padded))
    chart = line_chart(title, list(range(1, longest + 1)), series)
    return chart, tuple((style, name) for name, style, _ in series)
