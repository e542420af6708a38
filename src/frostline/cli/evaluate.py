"""`frostline evaluate RUN DATA`: how good a run is on data it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli import _options as options


def evaluate(
    run: options.Run,
    data: Annotated[
        Path, typer.Argument(help="A folder or a table, as `train` takes them.", metavar="DATA")
    ],
    *,
    file_column: options.FileColumn = "",
    text_column: options.TextColumn = "",
    label_column: options.LabelColumn = "",
    split_column: options.SplitColumn = "",
    csv: Annotated[
        Path | None,
        typer.Option(help="Write a row for each sample, the worst mistakes first.", metavar="FILE"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page with the mistakes on these data.", metavar="FILE"),
    ] = None,
    force: options.Force = False,
    weights: options.RunWeights = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """The metrics of a run on data it was not trained on, as accuracy, loss and F1 of classes.

    Of a divided folder the test/ or else the val/ part is taken; of the folder that the run
    divided itself, the part that it held out. A table's columns are by default the run's.
    """
    from frostline.callbacks.progress import BatchBar
    from frostline.cli._terminal import counting, notes, show, warn
    from frostline.pages.rendering import check_page_path
    from frostline.reports import check_table_path
    from frostline.runs import open_run
    from frostline.world import together, world_here

    opened = open_run(run, weights=weights)
    _ = opened.task  # refuses one that no file can make again, before any work
    if csv:
        check_table_path(csv, force=force)
    if report:
        check_page_path(report, force=force)
    with counting("checking the data") as progress:
        held = opened.held_out(
            data,
            file_column=file_column,
            text_column=text_column,
            label_column=label_column,
            split_column=split_column,
            progress=progress,
        )
    for note in held.notes:
        warn(note)
    bar = BatchBar(notes(), samples_per_batch=opened.settings.data.batch_size)
    world, written = world_here(device), dict[str, str]()
    with together(world):
        judgement = opened.judge(held, device=device, hooks=(bar,), world=world)
        found = judgement.metrics
        if csv and world.writes:
            judgement.save_table(csv, force=force)
            written["csv"] = str(csv)
        if report and world.writes:
            judgement.save(report, force=force)
            written["report"] = str(report)
        world.barrier()
    what = "texts" if opened.settings.data.is_text else "pictures"
    lines = [f"{found.line()} on {found.samples} {what}"]
    lines += [f"Written to {file}" for file in written.values()]
    show({**found.as_dict(), **written}, [*found.tables(), "\n".join(lines)], as_json=json)
