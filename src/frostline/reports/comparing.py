"""Runs side by side: what differs in their settings, their metrics, and whether by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from frostline.config import RunSettings
from frostline.errors import ConfigError
from frostline.pages.charts import BESIDE, LineChart, line_chart
from frostline.pages.rendering import now_in_words, render, save_page
from frostline.records import RunFolder, RunRecords
from frostline.records.certainty import Paired, accuracy_interval
from frostline.records.pairing import Sameness, Side, compared, same_training, same_validation
from frostline.records.spending import spending
from frostline.reports.reporting import flat_settings, read_fitting, read_trained
from frostline.tables import Table, columns
from frostline.tasks import label, shown
from frostline.units import format_bytes, format_seconds

_IN_COLUMNS = 4  # runs whose settings stand in columns; more stand in rows
# What a run writes down of itself, and what is said as data below the metrics.
_NOT_ASKED = {"frostline", "features.forms", "data.classes"}
_STYLES = "abcdef"  # of lines in a chart


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
class Comparison:
    """Runs side by side; the first is the one that the others are held against.

    Attributes:
        differing: settings that are not the same in all runs: name -> the value in each.
        warnings: why metrics may not be comparable.
        made: when, for people.
    """

    runs: tuple[ComparedRun, ...]
    differing: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    made: str

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of all runs."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.metrics))

    def metrics(self) -> Table:
        """A row for each run: metrics of its best epoch, time, delta size, frozen share."""
        names = self.metric_names
        heads = columns("run", *map(label, names), "epoch", "time", "delta", "frozen")
        rows = tuple(
            (
                run.name,
                *(shown(n, run.metrics[n]) if n in run.metrics else "-" for n in names),
                f"{run.records.best.epoch if run.records.best else '-'}/{len(run.records.epochs)}",
                "-" if run.seconds is None else format_seconds(run.seconds),
                "-" if run.records.delta_bytes is None else format_bytes(run.records.delta_bytes),
                "-" if run.frozen_share is None else f"{100 * run.frozen_share:.1f} %",
            )
            for run in self.runs
        )
        return Table(heads, rows, title="Best epochs")

    def settings(self) -> Table:
        """What was asked otherwise."""
        if not self.differing:
            return Table((), (), title="All settings are the same.")
        names = [run.name for run in self.runs]
        if len(names) <= _IN_COLUMNS:
            heads = columns("setting", *names, left=1 + len(names))
            rows = tuple((setting, *values) for setting, values in self.differing.items())
        else:
            heads = columns("setting", "run", "value", left=3)
            rows = tuple(
                (setting if name == names[0] else "", name, value)
                for setting, values in self.differing.items()
                for name, value in zip(names, values, strict=True)
            )
        return Table(heads, rows, title="Settings that differ")

    def against_first(self) -> Table | None:
        """The others against the first on the same samples; None where there are none."""
        rows = tuple(
            (
                run.name,
                *(f"{count:,}" for count in (found.samples, found.gained, found.lost)),
                f"{found.difference:+.4f}",
                f"{found.low:+.4f} to {found.high:+.4f}",
                f"{found.p_value:.2g}",
            )
            for run in self.runs
            if (found := run.against_first) is not None
        )
        if not rows:
            return None
        heads = columns("run", "samples", "won", "lost", "accuracy", "95 % interval", "p")
        notes = (
            "won: right where the first was wrong. The interval is Agresti and Min's;",
            "p is McNemar's: how often two equally good runs would differ by as much.",
        )
        return Table(
            heads, rows, title=f"Against {self.runs[0].name}, sample by sample", notes=notes
        )

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "runs": [
                {
                    "run": run.folder,
                    "name": run.name,
                    **{name: run.metrics.get(name) for name in self.metric_names},
                    "accuracy_interval": run.interval,
                    "best_epoch": run.records.best.epoch if run.records.best else None,
                    "epochs": len(run.records.epochs),
                    "seconds": run.seconds,
                    "delta_bytes": run.records.delta_bytes,
                    "frozen_share": run.frozen_share,
                    "validation_samples": run.validation,
                    "training_samples": run.training,
                    "against_first": asdict(run.against_first) if run.against_first else None,
                }
                for run in self.runs
            ],
            "settings": {name: list(values) for name, values in self.differing.items()},
            "warnings": list(self.warnings),
        }

    def page(self) -> str:
        """The comparison as HTML that needs no other file."""
        charts = [self._chart(name) for name in self.metric_names if name not in BESIDE]
        return render("compare.html", compared=self, charts=charts)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all.

        Raises:
            OutputError: as `save_page`.
        """
        save_page(self.page(), path, force=force)

    def _chart(self, name: str) -> LineChart:
        longest = max(len(run.records.epochs) for run in self.runs)
        series = []
        for place, run in enumerate(self.runs):
            values = [line.validation.get(name, math.nan) for line in run.records.epochs]
            if values:
                padded = [*values, *[math.nan] * (longest - len(values))]
                series.append((run.name, _STYLES[place % len(_STYLES)], padded))
        return line_chart(f"Validation {label(name)}", range(1, longest + 1), series)


def compare_runs(paths: Sequence[str | Path]) -> Comparison:
    """Put runs side by side, from what their folders hold.

    Raises:
        ConfigError: fewer than two, one twice, or one of them is no run.
    """
    folders = [RunFolder(Path(path)) for path in paths]
    roots = [folder.root.resolve() for folder in folders]
    if len(set(roots)) < 2 or len(set(roots)) < len(roots):
        raise ConfigError(
            f"asked to compare {', '.join(map(str, paths)) or 'nothing'}. Give two runs or more, "
            "each once."
        )
    for folder in folders:
        folder.check_is_run()
    settings = [RunSettings.read(folder.settings) for folder in folders]
    sides = [
        Side(read_fitting(folder, one), one.data.classes, frozenset(folder.read_trained_on()))
        for folder, one in zip(folders, settings, strict=True)
    ]
    names = _names(roots)
    runs = tuple(
        _run(name, folder, side, sides[0])
        for name, folder, side in zip(names, folders, sides, strict=True)
    )
    return Comparison(runs, _differing(settings), tuple(_warnings(runs, sides)), now_in_words())


def _run(name: str, folder: RunFolder, side: Side, first: Side) -> ComparedRun:
    records = side.records
    metrics = records.best.validation if records.best else {}
    samples = records.result.samples if records.result else len(records.judged or ())
    spent = spending(records)
    epochs = sum(line.seconds for line in records.epochs)
    return ComparedRun(
        name=name,
        folder=str(folder.root.resolve()),
        records=records,
        metrics=metrics,
        interval=accuracy_interval(metrics, samples),
        seconds=spent.total if spent else (epochs or None),
        frozen_share=_frozen_share(folder, records),
        against_first=None if side is first else compared(first, side),
        validation=same_validation(first, side),
        training=same_training(first, side),
    )


def _frozen_share(folder: RunFolder, records: RunRecords) -> float | None:
    trained = sum(tensor.nbytes for tensor in read_trained(folder).values())
    if records.result is None or records.result.frozen is None or not trained:
        return None
    frozen = records.result.frozen.nbytes
    return frozen / (frozen + trained)


def _differing(settings: Sequence[RunSettings]) -> dict[str, tuple[str, ...]]:
    flat = [flat_settings(one) for one in settings]
    for one, content in zip(settings, flat, strict=True):
        if one.plan:
            content["plan"] = "; ".join(
                phase.label(number) for number, phase in enumerate(one.plan, start=1)
            )
    names = dict.fromkeys(name for content in flat for name in content if name not in _NOT_ASKED)
    every = {name: tuple(content.get(name, "-") for content in flat) for name in names}
    return {name: values for name, values in every.items() if len(set(values)) > 1}


def _warnings(runs: Sequence[ComparedRun], sides: Sequence[Side]) -> list[str]:
    first = runs[0].name
    found = [
        f"{run.name} has no result.json that can be read, as one that is still going or was "
        "stopped: its metrics are those of its epochs so far."
        for run in runs
        if run.records.result is None
    ]
    for run, side in zip(runs[1:], sides[1:], strict=True):
        if side.classes != sides[0].classes:
            found.append(
                f"{run.name} has other classes than {first}: their metrics are not comparable."
            )
        elif run.validation == "different":
            more = " What both were judged on, and neither trained on, is compared below."
            found.append(
                f"{run.name} was judged by other samples than {first}: their metrics are not "
                f"comparable.{more if run.against_first else ''}"
            )
        elif run.validation == "unknown":
            found.append(
                f"whether {run.name} was judged by the same samples as {first} is not known: the "
                "content of its samples was not recorded."
            )
        if run.training == "different":
            found.append(f"{run.name} was trained on other samples than {first}.")
    return found


def _names(roots: Sequence[Path]) -> list[str]:
    """The folders' names, with as much before them as makes them differ."""
    for parts in range(1, max(len(root.parts) for root in roots) + 1):
        names = ["/".join(root.parts[-parts:]) for root in roots]
        if len(set(names)) == len(names):
            return names
    return list(map(str, roots))
