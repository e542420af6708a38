"""Progress in a notebook: one output below the cell, with a bar, the epochs so far, and notices."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from html import escape
from importlib import import_module
from typing import Any, final

from frostline.callbacks.progress import cells_of
from frostline.engine import Hook, Training
from frostline.records import EpochRecord
from frostline.tables import Table, columns, in_html, visible

_DRAWN_EVERY_SECONDS = 0.2  # each drawing is a message to the page


def in_notebook() -> bool:
    """Whether this process computes for a notebook; IPython in a terminal is none."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def notebook_hooks() -> tuple[Hook, ...]:
    """What a run shows where nobody said what: its progress in a notebook, elsewhere nothing."""
    return (NotebookProgress(),) if in_notebook() else ()


@final
class NotebookProgress(Hook):
    """What `fl.fit` shows in a notebook; `hooks=[]` shows nothing, `%%capture` hides it."""

    def __init__(self) -> None:
        self._notices: list[str] = []
        self._rows: list[dict[str, str]] = []
        self._bar = ""
        self._drawn_at = 0.0
        self._display: Any = None  # what is there already, to be drawn over

    def on_start(self, training: Training) -> None:
        for record in training.history:
            self._add(record, training.planned_epochs)

    def on_notice(self, text: str, /) -> None:
        self._notices.append(text)
        self._draw()

    def on_batch(self, stage: str, done: int, total: int, /) -> None:
        now = time.monotonic()
        if done < total and now - self._drawn_at < _DRAWN_EVERY_SECONDS:
            return
        self._bar = (
            f'<div><progress value="{done}" max="{total}"></progress> '
            f"{escape(visible(stage))} {done}/{total}</div>"
        )
        # The end of an epoch draws anyway.
        if done < total or now - self._drawn_at >= _DRAWN_EVERY_SECONDS:
            self._draw()

    def on_epoch(self, training: Training) -> None:
        self._bar = ""
        self._add(training.history[-1], training.planned_epochs)
        self._draw()

    def on_end(self) -> None:
        self._bar = ""
        self._draw()

    def _add(self, record: EpochRecord, epochs: int | None) -> None:
        self._rows.append(cells_of(record, epochs))

    def _parts(self) -> Iterator[Table | str]:
        if self._notices:
            yield "\n".join(self._notices)
        if self._rows:
            # Phases may have other metrics than those before them.
            heads = list(dict.fromkeys(head for row in self._rows for head in row))
            rows = tuple(tuple(row.get(head, "") for head in heads) for row in self._rows)
            yield Table(columns(*heads, left=0), rows)

    def _draw(self) -> None:
        shown: Any = import_module("IPython.display")  # it is there, since this is a notebook
        self._drawn_at = time.monotonic()
        page = {
            "text/html": in_html(self._parts()) + self._bar,
            "text/plain": "\n\n".join(map(str, self._parts())),
        }
        if self._display is None:
            self._display = shown.display(page, raw=True, display_id=True)
        else:
            self._display.update(page, raw=True)
