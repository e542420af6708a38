"""`frostline report RUN`: one self-contained HTML page on what a run did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli import _options as options


def report(
    run: options.Run,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; report.html in the run by default.", metavar="FILE"),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write a page on a run: the proof of its freeze, its data, curves, mistakes, times.

    What was frozen is proven anew from the files. Where it does not hold the page says so on
    top, and the exit status is 3.
    """
    from frostline.cli._terminal import notes, output, print_json, say
    from frostline.pages.rendering import check_page_path
    from frostline.runs import open_run

    opened = open_run(run)
    file = out or opened.folder.report
    check_page_path(file, force=force)
    made = opened.report()
    made.save(file, force=force)
    promise = made.promise
    if promise.state == "broken":
        say(notes(), f"Error: {promise.words}", style="red")
    elif promise.state == "unproven":
        say(notes(), f"Warning: not proven: {promise.words}", style="yellow")
    if json:
        print_json({**made.as_dict(), "report": str(file)})
    else:
        say(output(), f"Report: {file}")
    if promise.state == "broken":
        raise typer.Exit(3)
