"""The page of several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from frostline.pages.charts import BESIDE, LineChart, line_chart
from frostline.pages.rendering import render
from frostline.records import RunRecords
from frostline.records.certainty import Paired
from frostline.records.pairing import Sameness
from frostline.tasks import label

_STYLES = ("a", "b", "c", "d", "e", "f")


@final
@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run among several.

    Attributes:
        name: short, and no other run's here.
        metrics: of the best epoch by name; none where none is known.
        interval: of the accuracy, 95 %.
        seconds: of the whole run; of its epochs where no more was noted; None if nothing was.
        frozen_share: of all bytes, those that stayed frozen throughout; None if not known.
        against_first: paired with the first run, where samples are the same.
        validation, training: whether the samples are those of the first run.
    """

    name: str
    folder: str
    records: RunRecords
    metrics: Mapping[str, float]
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
        warnings: why metrics may not be comparable.
    """

    runs: tuple[ComparedRun, ...]
    differing: tuple[Differing, ...]
    warnings: tuple[str, ...]
    made: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.metrics))


def render_comparison(compared: Compared) -> str:
    """The comparison as one HTML page."""
    return render(
        "compare.html",
        compared=compared,
        metrics=compared.metrics,
        charts=tuple(_chart(compared, name) for name in compared.metrics if name not in BESIDE),
    )


def _chart(compared: Compared, name: str) -> tuple[LineChart, tuple[tuple[str, str], ...]]:
    longest = max((len(run.records.epochs) for run in compared.runs), default=0)
    series = []
    for place, run in enumerate(compared.runs):
        values = [line.validation.get(name, math.nan) for line in run.records.epochs]
        if values:
            style = _STYLES[place % len(_STYLES)]
            padded = [*values, *[math.nan] * (longest - len(values))]
            series.append((run.name, style, padded))
    chart = line_chart(f"Validation {label(name)}", list(range(1, longest + 1)), series)
    return chart, tuple((style, name) for name, style, _ in series)
