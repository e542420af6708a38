"""`frostline evaluate RUN DATA`: how good a run is on data it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli import _options as options


def evaluate(
    run: options.Run,
    data: Annotated[
        Path, typer.Argument(help="A folder of class folders, or a CSV or TSV.", metavar="DATA")
    ],
    *,
    weights: options.RunWeights = None,
    file_column: options.FileColumn = "",
    label_column: options.LabelColumn = "",
    split_column: options.SplitColumn = "",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Accuracy, loss, F1 and metrics of each class of a run on data it was not trained on.

    Of a divided folder the test/ or else the val/ part is taken; of the folder that the run
    divided itself, the part that it held out. A table's columns are by default the run's.
    """
    from frostline.callbacks.progress import BatchBar
    from frostline.cli._terminal import counting, notes, show, warn
    from frostline.runs import open_run

    opened = open_run(run, weights=weights)
    with counting("checking pictures") as progress:
        held = opened.held_out(
            data,
            file_column=file_column,
            label_column=label_column,
            split_column=split_column,
            progress=progress,
        )
    for note in held.notes:
        warn(note)
    bar = BatchBar(notes(), samples_per_batch=opened.settings.data.batch_size)
    found = opened.evaluate(held.images, device=device, hooks=(bar,))
    line = f"{found.line()} on {found.samples} pictures"
    show(found.as_dict(), [*found.tables(), line], as_json=json)
