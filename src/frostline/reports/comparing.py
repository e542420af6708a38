"""Runs side by side: what differs in their settings, their metrics, and whether by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from frostline.config import RunSettings
from frostline.errors import ConfigError
from frostline.pages.comparison import Compared, ComparedRun, Differing, render_comparison
from frostline.pages.rendering import now_in_words, save_page
from frostline.records import RunFolder, RunRecords
from frostline.records.certainty import Paired, share_interval
from frostline.records.pairing import Side, compared, same_training, same_validation
from frostline.records.spending import spending
from frostline.reports.reporting import flat_settings, read_fitting, trained_tensors
from frostline.tables import Table, columns
from frostline.tasks import label, shown
from frostline.units import format_bytes, format_seconds

_BESIDE = 4  # runs whose settings stand in columns; more stand in rows
# What a run writes down of itself, and what is said as data below the metrics.
_NOT_ASKED = {"frostline", "features.forms", "data.classes"}


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side; the first is the one that the others are held against."""

    facts: Compared

    def metrics(self) -> Table:
        """A row for each run: metrics of its best epoch, time, delta size, frozen share."""
        names = self.facts.metrics
        heads = columns("run", *map(label, names), "epoch", "time", "delta", "frozen")
        rows = tuple(
            (
                run.name,
                *(shown(n, run.metrics[n]) if n in run.metrics else "-" for n in names),
                _epochs(run.records),
                "-" if run.seconds is None else format_seconds(run.seconds),
                "-" if run.records.delta_bytes is None else format_bytes(run.records.delta_bytes),
                "-" if run.frozen_share is None else f"{100 * run.frozen_share:.1f} %",
            )
            for run in self.facts.runs
        )
        return Table(heads, rows, title="Best epochs")

    def settings(self) -> Table:
        """What was asked otherwise."""
        runs, differing = self.facts.runs, self.facts.differing
        if not differing:
            return Table((), (), title="All settings are the same.")
        if len(runs) <= _BESIDE:
            heads = columns("setting", *(run.name for run in runs), left=1 + len(runs))
            rows = tuple((one.name, *one.values) for one in differing)
            return Table(heads, rows, title="Settings that differ")
        long = tuple(
            (one.name if not place else "", run.name, value)
            for one in differing
            for place, (run, value) in enumerate(zip(runs, one.values, strict=True))
        )
        heads = columns("setting", "run", "value", left=3)
        return Table(heads, long, title="Settings that differ")

    def against_first(self) -> Table | None:
        """The others against the first on the same samples; None where there are none."""
        first, others = self.facts.runs[0], self.facts.runs[1:]
        known = [(run.name, run.against_first) for run in others if run.against_first]
        if not known:
            return None
        heads = columns("run", "samples", "won", "lost", "accuracy", "95 % interval", "p")
        rows = tuple((name, *_paired_cells(found)) for name, found in known)
        notes = (
            "won: right where the first was wrong. The interval is by bootstrap over samples;",
            "p is McNemar's: how often two equally good runs would differ by as much.",
        )
        return Table(heads, rows, title=f"Against {first.name}, sample by sample", notes=notes)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "runs": [
                {
                    "run": run.folder,
                    "name": run.name,
                    **{name: run.metrics.get(name) for name in self.facts.metrics},
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
                for run in self.facts.runs
            ],
            "settings": {one.name: list(one.values) for one in self.facts.differing},
            "warnings": list(self.facts.warnings),
        }

    def page(self) -> str:
        """The comparison as HTML that needs no other file."""
        return render_comparison(self.facts)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all.

        Raises:
            OutputError: as `save_page`.
        """
        save_page(self.page(), path, force=force)


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
        Side(read_fitting(folder, one), one.data.classes, folder.read_trained_on())
        for folder, one in zip(folders, settings, strict=True)
    ]
    names = _names(roots)
    runs = tuple(
        _run(name, folder, side, sides[0])
        for name, folder, side in zip(names, folders, sides, strict=True)
    )
    made = now_in_words()
    return Comparison(Compared(runs, _differing(settings), tuple(_warnings(runs, sides)), made))


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
        interval=share_interval(round(metrics["accuracy"] * samples), samples)
        if "accuracy" in metrics and samples
        else None,
        seconds=spent.total if spent else (epochs or None),
        frozen_share=_frozen_share(folder, records),
        against_first=None if side is first else compared(first, side),
        validation=same_validation(first, side),
        training=same_training(first, side),
    )


def _frozen_share(folder: RunFolder, records: RunRecords) -> float | None:
    trained = sum(tensor.nbytes for tensor in trained_tensors(folder))
    if records.result is None or records.result.frozen is None or not trained:
        return None
    frozen = records.result.frozen.nbytes
    return frozen / (frozen + trained)


def _differing(settings: Sequence[RunSettings]) -> tuple[Differing, ...]:
    flat = [dict(flat_settings(one)) for one in settings]
    for one, content in zip(settings, flat, strict=True):
        if one.plan:
            content["plan"] = "; ".join(
                phase.label(number) for number, phase in enumerate(one.plan, start=1)
            )
    names = dict.fromkeys(name for content in flat for name in content)
    return tuple(
        Differing(name, tuple(content.get(name, "-") for content in flat))
        for name in names
        if name not in _NOT_ASKED and len({content.get(name, "-") for content in flat}) > 1
    )


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
            more = (
                " What both were judged on, and neither trained on, is compared below."
                if run.against_first
                else ""
            )
            found.append(
                f"{run.name} was judged by other samples than {first}: their metrics are not "
                f"comparable.{more}"
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


def _epochs(records: RunRecords) -> str:
    best = records.best
    return f"{best.epoch if best else '-'}/{len(records.epochs)}"


def _paired_cells(found: Paired) -> tuple[str, ...]:
    return (
        f"{found.samples:,}",
        f"{found.gained:,}",
        f"{found.lost:,}",
        f"{found.difference:+.4f}",
        f"{found.low:+.4f} to {found.high:+.4f}",
        f"{found.p_value:.2g}",
    )
