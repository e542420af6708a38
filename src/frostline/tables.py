"""A table as data; printed plainly at 80 columns, or in colour where a terminal shows it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and how its cells stand."""

    heading: str
    justify: Literal["left", "right"] = "left"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, rows of text, and lines to stand under them."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def render(self, *, width: int = 80) -> str:
        """Plain text, no line wider than `width` columns; long cells are folded, never cut."""
        from rich.console import Console

        page = io.StringIO()
        # In a notebook rich would show the table at once instead of writing it to `page`.
        Console(
            file=page, width=width, color_system=None, legacy_windows=False, force_jupyter=False
        ).print(self)
        return "\n".join(line.rstrip() for line in page.getvalue().splitlines())

    def __str__(self) -> str:
        return self.render()

    def __rich__(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in self.columns:
            grid.add_column(Text(column.heading), justify=column.justify, overflow="fold")
        for row in self.rows:
            grid.add_row(*map(Text, row))
        title = [Text(self.title, style="bold")] if self.title else []
        return Group(*title, grid, *(Text(note) for note in self.notes))
