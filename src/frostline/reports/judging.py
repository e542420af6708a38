"""What a run makes of data that it is judged on: a table of all pictures, and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline._files import check_own, write_bytes
from frostline.config import DataSettings
from frostline.pages.rendering import now_in_words, render, save_page
from frostline.records import Answers, Judged, ResultNotes, RunRecords, flat
from frostline.reports.report import judged_parts, result_of
from frostline.reports.reporting import folder_of, shown_samples
from frostline.tasks import Metrics

_HEADS = (
    *("file", "true_class", "predicted_class"),
    *("true_probability", "predicted_probability", "result"),
)
_MISTAKES = 60  # pictures on a page, of 4 KB each


@final
@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run makes of pictures whose classes are known.

    Attributes:
        run: the run's folder.
        settings: of the run's data.
        data: the folder or table of the pictures.
        digests: of the content of each picture.
        notes: what to know of them.
        metrics: over all of them.
        judged: what each was taken for, or what is said of it.
    """

    run: Path
    settings: DataSettings
    data: Path
    digests: tuple[str, ...]
    notes: tuple[str, ...]
    metrics: Metrics
    judged: Judged | Answers

    def table(self) -> str:
        """A row for each picture as CSV: the surest mistakes first, the surest hits last.

        Of a task without classes what is true and what is said of each, the worst first.
        """
        judged = self.judged
        lines = _answered(judged) if isinstance(judged, Answers) else self._classed(judged)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()

    def _classed(self, judged: Judged) -> Iterator[Sequence[object]]:
        yield _HEADS
        classes, order = self.settings.classes, judged.worst_first
        parts = (judged.targets, judged.predicted, judged.target_chance, judged.confidence)
        rows = zip(order.tolist(), *(part[order].tolist() for part in parts), strict=True)
        for place, true, predicted, *chances in rows:
            chosen = (judged.names[place], classes[true], classes[predicted])
            result = "right" if true == predicted else "wrong"
            yield (*chosen, *(f"{chance:.6f}" for chance in chances), result)

    def save_table(self, path: str | Path, *, force: bool = False) -> None:
        """Write the table, whole or not at all; in UTF-8.

        Raises:
            OutputError: as `check_table_path`, or it cannot be written.
        """
        check_table_path(path, force=force)
        table = self.table()
        # Without the mark in front, Excel takes UTF-8 for the machine's own 8-bit code.
        mark = "" if table.isascii() else "\ufeff"
        write_bytes(Path(path), (mark + table).encode("utf-8", "backslashreplace"))

    def page(self) -> str:
        """Metrics, what was confused with what, and the mistakes, as HTML of one file."""
        judged, below = self.judged, folder_of(str(self.data))
        metrics = self.metrics.headline()
        if isinstance(judged, Answers):
            records = RunRecords(answers=judged, validated_on=self.digests)
            result = ResultNotes(judged.epoch, metrics, len(judged))
        else:
            records = RunRecords(judged=judged, validated_on=self.digests)
            result = result_of(judged, metrics, self.settings.classes)
        source = str(self.data)
        mistakes, doubts = shown_samples(records, self.settings, source, most=_MISTAKES)
        return render(
            "judgement.html",
            report=self,
            name=self.run.resolve().name,
            made=now_in_words(),
            records=records,
            **judged_parts(result, records.judged),
            tables=self.metrics.tables(),
            pictures_in=below,
            mistakes=mistakes,
            doubts=doubts,
        )

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all.

        Raises:
            OutputError: as `save_page`.
        """
        save_page(self.page(), path, force=force)


def check_table_path(path: str | Path, *, force: bool = False) -> None:
    """Make sure that a table may be written to `path`, before anything is computed for it.

    Raises:
        OutputError: as `check_own`.
    """
    check_own(Path(path), (b"file,true_",), kind="table", force=force)


def _answered(answers: Answers) -> Iterator[Sequence[object]]:
    rows = [
        {"file": one.name, **flat(one.truth, "true"), **flat(one.said, "predicted")}
        for one in answers.every
    ]
    heads = tuple(dict.fromkeys(name for row in rows for name in row))
    yield (*heads, "error")
    for row, one in zip(rows, answers.every, strict=True):
        yield (*(row.get(head, "") for head in heads), f"{one.badness:.6f}")
