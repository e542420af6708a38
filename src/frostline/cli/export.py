"""`frostline export RUN --to onnx`: one file with merged weights, for use without Frostline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.choices import EXPORT_TOLERANCE, ExportFormat
from frostline.cli import _options as options
from frostline.cli.predict import expanded
from frostline.tables import hanging
from frostline.units import format_bytes

if TYPE_CHECKING:
    from frostline.exports import Exported


def export(
    run: options.Run,
    *,
    to: Annotated[ExportFormat | None, typer.Option(help="Format of the file.")] = None,
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
    ] = EXPORT_TOLERANCE,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Keep the base in RUN, to need no other weights.")
    ] = False,
    weights: options.RunWeights = None,
    json: options.Json = False,
) -> None:
    """Write one file with merged weights, classes and preprocessing, checked against the run.

    What the file computes is compared with the run on pictures, both in float32, before the file
    is there; one that differs is not written.
    """
    from frostline.callbacks.progress import BatchBar
    from frostline.cli._terminal import notes, show
    from frostline.exports import check_export, check_fold, export, keep_base
    from frostline.runs import open_run

    target = _target(run, to, out, with_base=with_base)
    if to is not None:
        with options.usage_errors():
            check_fold(to, fold=fold)
    opened = open_run(run, weights=weights)
    files = tuple(expanded(pictures or ()))
    document, lines = dict[str, object](), list[str]()
    if to is not None:
        check_export(to, target, fold=fold)
    if with_base:
        base = keep_base(opened)
        document["base"] = str(base)
        lines.append(f"Base in {base}: {format_bytes(base.stat().st_size)}")
    if to is not None:
        bar = BatchBar(notes(), samples_per_batch=opened.batch_size)
        made = export(
            opened, to, target, fold=fold, pictures=files, tolerance=tolerance, hooks=[bar]
        )
        document |= _document(made)
        lines += _lines(made)
    show(document, ["\n".join(lines)], as_json=json)


def _target(run: Path, to: ExportFormat | None, out: Path | None, *, with_base: bool) -> Path:
    if to is None and (out is not None or not with_base):
        raise typer.BadParameter("say which format, as --to onnx, or give --with-base alone.")
    target = out or run / f"model.{to}"
    if target.suffix != f".{to}":
        raise typer.BadParameter(f"{target} does not end in .{to}.", param_hint="--out")
    return target


def _document(made: Exported) -> dict[str, object]:
    size, (same, known) = made.file.stat().st_size, made.recorded
    recorded = {"pictures": known, "same_class": same}
    checked = asdict(made.checked)
    return {"file": str(made.file), "bytes": size, "checked": checked, "recorded": recorded}


def _lines(made: Exported) -> Sequence[str]:
    size, (same, known) = format_bytes(made.file.stat().st_size), made.recorded
    lines = [f"Written to {made.file}: {size}, with classes and preprocessing"]
    lines.append(hanging(f"Checked {made.checked}", indent=8))
    if known:
        lines.append(f"Recorded when the run was judged: the same class on {same} of {known}")
    return lines
