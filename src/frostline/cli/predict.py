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
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Write the class of each pixel of each picture into this folder, as PNG.",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """What the run says of each picture: the most probable class, with its probability.

    Of another task it says labels, numbers, or what share of the picture each class has.

    Pictures that cannot be read are named on standard error; the others are predicted all the
    same, and the exit status is 1.
    """
    from frostline.callbacks.progress import BatchBar
    from frostline.cli._terminal import notes, output, print_json, say, warn
    from frostline.data import read_files, run_notes

    if json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv.")
    opened, aside = _opened(run, weights, device), notes()
    if masks and not opened.has_masks:
        raise typer.BadParameter("only a segmentation makes masks.", param_hint="--masks")
    if masks and masks.exists() and (not masks.is_dir() or any(masks.iterdir())):
        raise typer.BadParameter(f"{masks} is not an empty folder.", param_hint="--masks")
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
    written = _write_masks(found, masks) if masks else {}
    if json:
        documents = [_document(prediction, top) for prediction in found]
        print_json([{**one, **_mask_of(one, written)} for one in documents])
    elif as_csv:
        _print_csv(asked, found, broken, top)
    elif found:
        about = "class and probability" if found[0].classes else "answer"
        rows = tuple((p.file, _in_words(p)) for p in found)
        output().print(Table(columns("file", about, left=2), rows))
    if written and not json:
        say(aside, f"Written to {masks}: {len(written)} masks, a grey PNG each, of class numbers")
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
    if not prediction.classes:
        return {"file": prediction.file, **prediction.answer}
    label, probability = prediction.classes[0]
    return {
        "file": prediction.file,
        "class": label,
        "probability": probability,
        "top": [{"class": name, "probability": p} for name, p in prediction.classes[:top]],
        "probabilities": dict(prediction.classes),
    }


def _in_words(prediction: Prediction) -> str:
    from frostline.records import in_words

    if prediction.classes:
        return ", ".join(f"{name} {share:.3f}" for name, share in prediction.classes)
    return in_words(prediction.answer)


def _mask_of(document: Mapping[str, object], written: Mapping[str, Path]) -> dict[str, object]:
    file = str(document["file"])
    return {"mask": str(written[file])} if file in written else {}


def _write_masks(found: Sequence[Prediction], folder: Path) -> dict[str, Path]:
    """A PNG for each picture; two pictures of one name get numbers."""
    from PIL import Image

    from frostline._files import output_errors

    written: dict[str, Path] = {}
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for prediction in found:
            if prediction.mask is None:
                continue
            stem = Path(prediction.file).stem
            names = (f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, 10**6)))
            path = next(folder / n for n in names if folder / n not in written.values())
            Image.fromarray(prediction.mask.numpy()).save(path)
            written[prediction.file] = path
    return written


def _print_csv(
    asked: Sequence[Path],
    predictions: Sequence[Prediction],
    broken: Mapping[Path, ImageError],
    top: int,
) -> None:
    """A row for each file in the order asked for; of one that cannot be read it has the reason."""
    cells = [_cells(prediction, top) for prediction in predictions]
    heads = list(dict.fromkeys(head for row in cells for head in row)) or ["class", "probability"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", *heads, "error"])
    rest = iter(cells)
    for file in asked:
        row = {} if file in broken else next(rest)
        writer.writerow([file, *(row.get(head, "") for head in heads), broken.get(file, "")])


def _cells(prediction: Prediction, top: int) -> dict[str, object]:
    from frostline.records import flat

    if not prediction.classes:
        return flat(prediction.answer)
    places = [""] if top == 1 else [f"_{place}" for place in range(1, top + 1)]
    found: dict[str, object] = {}
    for place, (name, share) in zip(places, prediction.classes, strict=False):
        found |= {f"class{place}": name, f"probability{place}": f"{share:.6f}"}
    return found
