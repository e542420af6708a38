"""A table as data: plain at 80 columns, in colour where a terminal shows it, HTML in a notebook."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# Control characters but for tabs and line ends, line separators, and marks of direction or of none.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
COLUMNS = 80  # of a text for people
_GAP_COLUMNS = 3  # what rich puts between two columns
# Where a cell may be broken, best first: between words and folders; then within a name, behind a
# dot that is not in a number, behind _ or -, and before a capital as in Batch|Norm2d.
_BREAKS = (
    re.compile(r"(?<=\s)(?=\S)|(?<=/)"),
    re.compile(r"(?<=[_-])|(?<=\.)(?!\d)|(?<=\D\.)|(?<=[a-z\d])(?=[A-Z])"),
)


class Displayed:
    """Abstract: what a notebook shows as `print` does, with tables as tables."""

    __slots__ = ()

    def _parts(self) -> Iterable[Table | str]:
        """Tables and texts, in the order in which they are read; those of `str` by default."""
        return (str(self),)

    def _repr_html_(self) -> str:
        return in_html(self._parts())

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Beside the HTML, and where there is none, as in IPython: what `print` shows."""
        return {"text/plain": str(self)}


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and how its cells stand."""

    heading: str
    justify: Literal["left", "right"] = "left"


@dataclass(frozen=True, slots=True)
class Table(Displayed):
    """Columns, rows of text, and lines to stand under them."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def render(self, *, width: int = COLUMNS) -> str:
        """Plain text, no line wider than `width` columns; long cells are folded, never lost."""
        from rich.console import Console

        page = io.StringIO()
        # In a notebook rich would show the table at once instead of writing it to `page`.
        Console(
            file=page, width=width, color_system=None, legacy_windows=False, force_jupyter=False
        ).print(self)
        return "\n".join(line.rstrip() for line in page.getvalue().splitlines())

    def __str__(self) -> str:
        return self.render()

    def _parts(self) -> Iterable[Table | str]:
        return (self,)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        room = options.max_width - _GAP_COLUMNS * (len(self.columns) - 1)
        rows = [tuple(map(visible, row)) for row in self.rows]
        widths = _column_widths(self.columns, rows, room)
        for column, width in zip(self.columns, widths, strict=True):
            heading = Text(_folded(column.heading, width))
            grid.add_column(heading, justify=column.justify, overflow="fold", width=width)
        for row in rows:
            cells = zip(row, widths, strict=True)
            grid.add_row(*(Text(_folded(cell, width)) for cell, width in cells))
        if self.title:
            yield Text(visible(self.title), style="bold")
        yield grid
        yield from (Text(visible(note)) for note in self.notes)


def in_html(parts: Iterable[Table | str]) -> str:
    """Tables and texts for a notebook; what stands in them is shown, never obeyed.

    It carries no colours, so that it is read on any ground, and no script.
    """
    every = (_table_html(part) if isinstance(part, Table) else _text_html(part) for part in parts)
    return f'<div style="overflow-x: auto">{"".join(every)}</div>'


def _text_html(text: str) -> str:
    # Pages of notebooks break lines within words otherwise.
    style = "font-family: monospace; white-space: pre-wrap; word-break: normal"
    return f'<pre style="{style}">{escape(visible(text))}</pre>'


def _table_html(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        aligned = zip(table.columns, cells, strict=True)
        return "".join(
            # Indents and line ends of a cell are kept: they show what lies in what.
            f'<{tag} style="text-align: {column.justify}; white-space: pre">'
            f"{escape(visible(cell))}</{tag}>"
            for column, cell in aligned
        )

    title = f"<caption>{escape(visible(table.title))}</caption>" if table.title else ""
    head = row((column.heading for column in table.columns), "th")
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    notes = "".join(f"<div>{escape(visible(note))}</div>" for note in table.notes)
    return (
        f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<div style="margin-bottom: 1em">{notes}</div>'
    )


def visible(text: str) -> str:
    r"""`text` with what a terminal would obey, not show, written out: `\x1b`, `\u202e`.

    Names of classes, files and modules are others' text: escape sequences could move the cursor
    or rewrite what stands there, direction marks show a name in another order than it has.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def columns(*headings: str, left: int = 1, right: int | None = None) -> tuple[Column, ...]:
    """Columns of these headings: `left` of words, `right` of numbers or all others, then words."""
    numbers = range(left, len(headings) if right is None else left + right)
    return tuple(
        Column(heading, "right" if place in numbers else "left")
        for place, heading in enumerate(headings)
    )


def hanging(text: str, *, indent: int) -> str:
    """`text` in lines of 80 columns, those after the first indented; names and paths stay whole."""
    return fill(
        text,
        COLUMNS,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _column_widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int
) -> list[int]:
    """Terminal columns for each of the table's, the widest shrunk first until they fit `room`.

    They shrink as far as cells need be broken only between words; if that is not enough, within
    names; then anywhere, but numbers, which stand to the right, last.
    """
    cells = [
        (column.heading, *(row[number] for row in rows)) for number, column in enumerate(columns)
    ]
    widths, words, names = (
        [max(_longest_part(cell, breaks) for cell in own) for own in cells]
        for breaks in ((), _BREAKS[:1], _BREAKS)
    )
    numbers = [
        least if column.justify == "right" else 1
        for column, least in zip(columns, names, strict=True)
    ]
    for least in (words, names, numbers, [1] * len(columns)):
        while sum(widths) > room:
            slack = [(width, n) for n, width in enumerate(widths) if width > least[n]]
            if not slack:
                break
            widths[max(slack)[1]] -= 1
    return widths


def _longest_part(text: str, breaks: Sequence[re.Pattern[str]]) -> int:
    """Terminal columns of the longest part that is left after breaking at all of `breaks`."""
    from rich.cells import cell_len

    indent, parts = _indent(text), text.lstrip(" ").splitlines() or [""]
    for pattern in breaks:
        parts = [piece for part in parts for piece in pattern.split(part)]
    return len(indent) + max(cell_len(part.rstrip()) for part in parts)


def _folded(text: str, width: int) -> str:
    """`text` in lines of at most `width` terminal columns, each as far to the right as the first.

    Broken between words; a word that is too long, within its name; a name that is, anywhere.
    """
    indent = _indent(text)[: width // 2]
    lines = text.lstrip(" ").splitlines() or [""]
    folded = (part for line in lines for part in _fill(line, width - len(indent), _BREAKS))
    return "\n".join(indent + part for part in folded)


def _fill(text: str, width: int, breaks: Sequence[re.Pattern[str]]) -> Iterator[str]:
    from rich.cells import cell_len, chop_cells

    if cell_len(text.rstrip()) <= width:
        yield text.rstrip()
        return
    if not breaks:
        yield from chop_cells(text.rstrip(), width)
        return
    line = ""
    for piece in breaks[0].split(text):
        if cell_len((line + piece).rstrip()) <= width:
            line += piece
            continue
        if line.strip():
            yield line.rstrip()
        *whole, line = _fill(piece, width, breaks[1:])
        yield from whole
        line += piece[len(piece.rstrip()) :]
    if line.strip():
        yield line.rstrip()


def _indent(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" "))]
