"""`frostline compare RUN RUN...`: runs side by side, as tables and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli import _options as options


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders that `frostline train` wrote.", metavar="RUN RUN..."),
    ],
    *,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page as well.", metavar="FILE")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Put runs side by side: settings that differ, metrics, time, size; and is it chance?

    The others are held against the first. Metrics are those the runs recorded; `frostline verify`
    proves a run.
    """
    from frostline.cli._terminal import show, warn
    from frostline.pages.rendering import check_page_path
    from frostline.reports.comparing import compare_runs

    if len(runs) < 2:
        raise typer.BadParameter("give two runs or more.", param_hint="RUN RUN...")
    if html is not None:
        check_page_path(html, force=force)
    found = compare_runs(runs)
    if html is not None:
        found.save(html, force=force)
    for warning in found.warnings:
        warn(warning)
    tables = (found.settings(), found.metrics(), found.against_first())
    parts = [table if table.columns else str(table.title) for table in tables if table is not None]
    show(found.as_dict(), [*parts, *([f"Page: {html}"] if html else [])], as_json=json)
