"""Where text goes: results to standard output, progress and notes to standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from frostline.cli._speaking import is_first
from frostline.tables import COLUMNS, Table, visible


def output() -> Console:
    """Standard output; 80 columns where it is no terminal, so that tables are the same anywhere."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=COLUMNS)


def notes() -> Console:
    """Standard error, for progress, notes and warnings."""
    return Console(stderr=True, highlight=False, quiet=not is_first())


def say(console: Console, message: str, *, style: str = "") -> None:
    """Print one message as it is: square brackets in names are no markup, long paths not cut."""
    console.print(Text(visible(message), style=style), soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    say(notes(), f"Warning: {message}", style="yellow")


def print_json(document: object) -> None:
    """One JSON document on standard output, in ASCII, which any stream and file name will bear.

    A number that is infinite or none, for which JSON has no word, is null.
    """
    text = json.dumps(_in_json(document), indent=2, allow_nan=False)
    print(text)  # noqa: T201 - the output itself


def _in_json(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _in_json(part) for name, part in value.items()}
    return [_in_json(part) for part in value] if isinstance(value, list | tuple) else value


def show(document: object, parts: Iterable[Table | str], *, as_json: bool) -> None:
    """The document as JSON, or tables and messages with an empty line between any two."""
    if as_json:
        print_json(document)
    else:
        print_parts(output(), parts)


def print_parts(console: Console, parts: Iterable[Table | str]) -> None:
    """Tables and messages, with an empty line between any two."""
    for number, part in enumerate(parts):
        if number:
            console.print()
        if isinstance(part, str):
            say(console, part)
        else:
            console.print(part)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, or lines in a log; gives the function to report with."""
    from frostline.callbacks.progress import LogLines

    console = notes()
    if not console.is_terminal:
        lines = LogLines(console)
        yield lambda done, total: lines.say(what, done, total)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
