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
    from frostline.cli._terminal import notes, say, show, warn
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
        warn(f"not proven: {promise.words}")
    show({**made.as_dict(), "report": str(file)}, [f"Report: {file}"], as_json=json)
    if promise.state == "broken":
        raise typer.Exit(3)
