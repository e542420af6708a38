"""Progress for people: a bar on standard error while an epoch runs, a table row when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from frostline.engine import Hook, Training
from frostline.records import EpochRecord
from frostline.tables import COLUMNS, hanging
from frostline.tasks import label, shown
from frostline.units import format_seconds

_DRAWN_EVERY_SECONDS = 0.1
_SAID_EVERY_SECONDS = 10.0  # in a log
_INDENT = 10  # of what follows the first word of a notice
_WIDTH = 8  # of a column at least
_SHORT = {  # or a line is over 80 columns
    "accuracy": "acc",
    "macro F1": "F1",
    "label accuracy": "acc",
    "mean average precision": "mAP",
    "subset accuracy": "exact",
    "pixel accuracy": "acc",
    "mean IoU": "mIoU",
    "mean dice": "dice",
    "token accuracy": "acc",
}


@final
class EpochTable(Hook):
    """Prints a line for each epoch, so that a pipe gets it at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_headed = False

    def on_start(self, training: Training) -> None:
        for record in training.history:
            self._row(record, training.planned_epochs)

    def on_notice(self, text: str, /) -> None:
        self._console.print(Text(hanging(text, indent=_INDENT)), soft_wrap=True)
        self._is_headed = False

    def on_epoch(self, training: Training) -> None:
        self._row(training.history[-1], training.planned_epochs)

    def _row(self, record: EpochRecord, epochs: int | None) -> None:
        cells = cells_of(record, epochs)
        if not self._is_headed:
            self._line(cells, cells, style="bold")
            self._is_headed = True
        self._line(cells, cells.values())

    def _line(self, heads: Iterable[str], cells: Iterable[str], *, style: str = "") -> None:
        widths = (max(_WIDTH, len(head)) for head in heads)
        text = " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        self._console.print(text, style=style, highlight=False, soft_wrap=True)


@final
class LogLines:
    """What a bar shows, as a line now and then; what takes less time between two says nothing."""

    def __init__(self, console: Console, *, every_seconds: float = _SAID_EVERY_SECONDS) -> None:
        self._console = console
        self._every_seconds = every_seconds
        self._what = ""
        self._done, self._said_at = 0, 0.0

    def say(self, what: str, done: int, total: int) -> None:
        """`checking the data: 120 of 1,563`, if it is time."""
        now = time.monotonic()
        if what != self._what or done <= self._done:  # of an epoch after the other, too
            self._what, self._said_at = what, now
        elif now - self._said_at >= self._every_seconds:
            self._said_at = now
            self._console.print(f"{what}: {done:,} of {total:,}", highlight=False)
        self._done = done


@final
class BatchBar(Hook):
    """A bar with rate and time left; in a log, where it is no terminal, a line now and then."""

    def __init__(self, console: Console, *, samples_per_batch: int) -> None:
        self._samples_per_batch = samples_per_batch
        self._lines = LogLines(console)
        self._bars = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = TaskID(0)
        self._stage = ""  # of the bar that is shown
        self._drawn_at = 0.0

    def on_batch(self, stage: str, done: int, total: int, /) -> None:
        # Steps on stored features take less than drawing the bar.
        now = time.monotonic()
        if self._bars.disable:
            self._lines.say(f"{stage}, batches", done, total)
            return
        if done < total and now - self._drawn_at < _DRAWN_EVERY_SECONDS:
            return
        self._drawn_at = now
        if stage != self._stage:
            self.on_end()
            self._stage = stage
            self._bars.start()
            self._task = self._bars.add_task(stage, total=total, rate="")
        speed = self._bars.tasks[-1].speed or 0.0
        rate = f"{speed * self._samples_per_batch:.0f} samples/s" if speed else ""
        self._bars.update(self._task, completed=done, rate=rate)
        if done == total:
            self.on_end()

    def on_end(self) -> None:
        if self._stage:
            self._bars.stop()
            self._bars.remove_task(self._task)
            self._stage = ""


def cells_of(record: EpochRecord, epochs: int | None) -> dict[str, str]:
    """A cell below each heading; of many metrics the first ones and the loss, as fit into a line.

    All of them are in the run's files.
    """
    of_all = "" if epochs is None else f"/{epochs}"
    before = {
        "epoch": f"{'*' if record.best else ''}{record.epoch}{of_all}",
        "lr": f"{record.lr:.2e}",
    }
    after = {"time": format_seconds(record.seconds)}
    metrics = {
        f"{stage} {_SHORT.get(label(name), label(name))}": shown(name, value)
        for stage, values in (("train", record.train), ("val", record.validation.headline()))
        for name, value in values.items()
    }
    while len(metrics) > 1 and _columns_of({**before, **metrics, **after}) > COLUMNS:
        last = [head for head in metrics if not head.endswith(" loss")] or list(metrics)
        del metrics[last[-1]]
    return {**before, **metrics, **after}


def _columns_of(cells: Iterable[str]) -> int:
    return sum(max(_WIDTH, len(head)) + 1 for head in cells) - 1
