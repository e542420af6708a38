"""`frostline predict RUN FILE...`: class and probability of each picture."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options
from frostline.tables import Table, columns

if TYPE_CHECKING:
    from frostline.errors import ImageError
    from frostline.exports import ExportedModel
    from frostline.runs import FinishedRun, Prediction


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            help="A folder that `frostline train` wrote, or a .onnx or .safetensors file that "
            "`frostline export` did.",
            metavar="RUN|FILE",
        ),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders, or - for a list on standard input.", metavar="PICTURE..."
        ),
    ],
    *,
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 1,
    weights: options.RunWeights = None,
    device: options.Device = "auto",
    json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """The most probable class of each picture, with its probability.

    Pictures that cannot be read are named on standard error; the others are predicted all the
    same, and the exit status is 1.
    """
    from frostline.callbacks.progress import BatchBar
    from frostline.cli._terminal import notes, output, print_json, say, warn
    from frostline.data import read_files, run_notes

    if json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv.")
    opened, aside = _opened(run, weights, device), notes()
    asked = list(expanded(files))
    digests, broken, values = read_files(asked, levels=opened.levels)
    good = [file for file in asked if file in digests]
    for error in broken.values():
        say(aside, f"Error: {error}", style="red")
    for note in run_notes(values.values(), opened.levels):
        warn(note)
    bar = BatchBar(aside, samples_per_batch=opened.batch_size)
    named = sys.maxsize if json else top
    found = opened.predict(good, top=named, device=device, hooks=(bar,)) if good else []
    if json:
        print_json([_document(prediction, top) for prediction in found])
    elif as_csv:
        _print_csv(asked, found, broken, top)
    elif found:
        rows = (
            (p.file, ", ".join(f"{name} {share:.3f}" for name, share in p.classes)) for p in found
        )
        output().print(Table(columns("file", "class and probability", left=2), tuple(rows)))
    if broken or not found:
        raise typer.Exit(1)


def _opened(path: Path, weights: Path | None, device: str) -> FinishedRun | ExportedModel:
    from frostline.exports import EXPORTED, open_export
    from frostline.runs import open_run

    if path.is_dir() or not (path.is_file() or path.suffix in EXPORTED):
        return open_run(path, weights=weights)
    if weights is not None:
        raise typer.BadParameter("an exported file holds all weights.", param_hint="--weights")
    if device not in ("auto", "cpu"):
        raise typer.BadParameter("an exported file is computed on the CPU.", param_hint="--device")
    return open_export(path)


def expanded(files: Sequence[str]) -> Iterator[Path]:
    """The pictures meant: folders give what lies in them, `-` a line each of standard input."""
    from frostline.data import IMAGE_SUFFIXES

    for name in files:
        if name == "-":
            listed = [Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()]
            if not listed:
                raise typer.BadParameter(
                    "standard input is empty; - takes a file's name from each line of it, as in "
                    "`ls new/*.jpg | frostline predict RUN -`."
                )
            yield from listed
        elif Path(name).is_dir():
            inside = (p for p in Path(name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            shown = sorted(p for p in inside if not p.name.startswith("."))
            yield from shown or [Path(name)]
        else:
            yield Path(name)


def _document(prediction: Prediction, top: int) -> dict[str, object]:
    label, probability = prediction.classes[0]
    return {
        "file": prediction.file,
        "class": label,
        "probability": probability,
        "top": [{"class": name, "probability": p} for name, p in prediction.classes[:top]],
        "probabilities": dict(prediction.classes),
    }


def _print_csv(
    asked: Sequence[Path],
    predictions: Sequence[Prediction],
    broken: Mapping[Path, ImageError],
    top: int,
) -> None:
    """A row for each file in the order asked for; of one that cannot be read it has the reason."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    most = max((len(prediction.classes) for prediction in predictions), default=top)
    places = [""] if top == 1 else [f"_{place}" for place in range(1, most + 1)]
    heads = [f"{word}{place}" for place in places for word in ("class", "probability")]
    writer.writerow(["file", *heads, "error"])
    rest = iter(predictions)
    for file in asked:
        if error := broken.get(file):
            writer.writerow([file, *[""] * len(heads), error])
            continue
        classes = next(rest).classes
        cells = [cell for name, p in classes for cell in (name, f"{p:.6f}")]
        writer.writerow([file, *cells, ""])
