"""`frostline export RUN --to onnx`: one file with merged weights, for use without Frostline."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from frostline.cli import _options as options
from frostline.cli.predict import expanded
from frostline.tables import hanging


def export(
    run: options.Run,
    *,
    to: Annotated[Literal["safetensors", "pt2", "onnx"], typer.Option(help="Format of the file.")],
    out: Annotated[
        Path | None, typer.Option(help="New file; by default RUN/model.FORMAT.", metavar="FILE")
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold batch norms into the layers before them.")
    ] = False,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            help="A picture or a folder to check on, in place of the run's validation pictures; "
            "once for each.",
            metavar="FILE",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far an output may differ, as a share of the largest.", min=0)
    ] = 1e-5,
    json: options.Json = False,
) -> None:
    """Write one file with merged weights, classes and preprocessing, checked against the run.

    What the file computes is compared with the run on pictures, both in float32, before the file
    is there; one that differs is not written.
    """
    from frostline.callbacks.progress import BatchBar
    from frostline.cli._terminal import notes, show
    from frostline.exports import check_export, check_fold, export
    from frostline.runs import open_run
    from frostline.units import format_bytes

    target = out or run / f"model.{to}"
    if target.suffix != f".{to}":
        raise typer.BadParameter(f"{target} does not end in .{to}.", param_hint="--out")
    with options.usage_errors():
        check_fold(to, fold=fold)
    opened = open_run(run)
    check_export(to, target, fold=fold)
    bar = BatchBar(notes(), samples_per_batch=32)
    files = tuple(expanded(pictures or ()))
    made = export(opened, to, target, fold=fold, pictures=files, tolerance=tolerance, hooks=[bar])
    size = target.stat().st_size
    document = {"file": str(target), "bytes": size, "folded": fold, "checked": asdict(made.checked)}
    lines = [f"Written to {target}: {format_bytes(size)}, with classes and preprocessing"]
    lines.append(hanging(f"Checked  {made.checked}", indent=9))
    same, known = made.recorded
    if known:
        document["recorded"] = {"pictures": known, "same_class": same}
        lines.append(f"Recorded by the run when it was judged: the same class on {same} of {known}")
    show(document, ["\n".join(lines)], as_json=json)
