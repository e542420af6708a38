"""What a run makes of data that it is judged on: a table of all pictures, and a page."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline._files import check_own, write_bytes
from frostline.config import DataSettings
from frostline.pages.rendering import now_in_words, render, save_page
from frostline.records import Judged, RunRecords
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
        judged: what each was taken for.
    """

    run: Path
    settings: DataSettings
    data: Path
    digests: tuple[str, ...]
    notes: tuple[str, ...]
    metrics: Metrics
    judged: Judged

    def table(self) -> str:
        """A row for each picture as CSV: the surest mistakes first, the surest hits last."""
        classes, judged = self.settings.classes, self.judged
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADS)
        parts = (judged.targets, judged.predicted, judged.target_chance, judged.confidence)
        order = judged.worst_first
        rows = zip(order.tolist(), *(part[order].tolist() for part in parts), strict=True)
        for place, true, predicted, *chances in rows:
            chosen = (judged.names[place], classes[true], classes[predicted])
            result = "right" if true == predicted else "wrong"
            writer.writerow([*chosen, *(f"{chance:.6f}" for chance in chances), result])
        return text.getvalue()

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
        result = result_of(self.judged, self.metrics.headline(), self.settings.classes)
        below = folder_of(str(self.data))
        records = RunRecords(judged=self.judged, validated_on=self.digests)
        mistakes, doubts = shown_samples(records, self.settings, below, most=_MISTAKES)
        return render(
            "judgement.html",
            report=self,
            name=self.run.resolve().name,
            made=now_in_words(),
            records=records,
            **judged_parts(result, self.judged),
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
    check_own(Path(path), (",".join(_HEADS).encode(),), kind="table", force=force)
