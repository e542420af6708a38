"""`frostline predict RUN FILE...`: class and probability of each picture."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options
from frostline.cli._answers import cells_of, document_of, heads_of, in_words_of
from frostline.tables import Table, columns

if TYPE_CHECKING:
    from frostline.data import Levels
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
            help="Pictures, folders, or - for a list on standard input. Of a run of texts: tables "
            "of them, the texts themselves, or - for a text in each line.",
            metavar="PICTURE|TEXT...",
        ),
    ],
    *,
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 1,
    text_column: options.TextColumn = "",
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
    from frostline.cli._terminal import notes, output, print_json, say
    from frostline.cli.predict_texts import Texts
    from frostline.runs import FinishedRun
    from frostline.world import together, world_here

    if json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv.")
    opened, aside, world = _opened(run, weights, device), notes(), world_here(device)
    if masks:
        _check_masks(masks, opened)
    if isinstance(opened, FinishedRun) and opened.settings.data.is_text:
        given = Texts.read(files, opened, text_column)
        bar = BatchBar(aside, samples_per_batch=opened.batch_size)
        named = sys.maxsize if json else top
        with together(world):
            answers = opened.predict(
                given.whole, top=named, device=device, hooks=(bar,), world=world
            )
        given.show(answers, top=top, as_json=json, as_csv=as_csv)
        return
    if text_column:
        raise typer.BadParameter("the run learnt from pictures.", param_hint="--text-column")
    asked = list(expanded(files))
    good, broken = _readable(asked, opened.levels)
    bar = BatchBar(aside, samples_per_batch=opened.batch_size)
    named = sys.maxsize if json else top
    found: list[Prediction] = []
    if good:
        with together(world):
            found = opened.predict(good, top=named, device=device, hooks=(bar,), world=world)
    written = _write_masks(found, masks) if masks and world.writes else {}
    if json:
        documents = [document_of(prediction, top) for prediction in found]
        print_json([{**one, **_mask_of(one, written)} for one in documents])
    elif as_csv:
        _print_csv(asked, found, broken, top)
    elif found:
        output().print(_table(found))
    if written and not json:
        say(aside, f"Written to {masks}: {len(written)} masks, a grey PNG each, of class numbers")
    if broken or not found:
        raise typer.Exit(1)


def _readable(
    files: Sequence[Path], levels: Levels | None
) -> tuple[list[Path], dict[Path, ImageError]]:
    """The pictures that can be read, and why the others cannot; says so of these."""
    from frostline.cli._terminal import notes, say, warn
    from frostline.data import read_files, run_notes

    digests, broken, values = read_files(files, levels=levels)
    for error in broken.values():
        say(notes(), f"Error: {error}", style="red")
    for note in run_notes(values.values(), levels):
        warn(note)
    return [file for file in files if file in digests], dict(broken)


def _check_masks(folder: Path, opened: FinishedRun | ExportedModel) -> None:
    if not opened.has_masks:
        raise typer.BadParameter("only a segmentation makes masks.", param_hint="--masks")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"{folder} is not an empty folder.", param_hint="--masks")


def _table(found: Sequence[Prediction]) -> Table:
    about = "class and probability" if found[0].classes else "answer"
    rows = tuple((one.file, in_words_of(one)) for one in found)
    return Table(columns("file", about, left=2), rows)


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


def _mask_of(document: Mapping[str, object], written: Mapping[str, Path]) -> dict[str, object]:
    file = str(document["file"])
    return {"mask": str(written[file])} if file in written else {}


def _write_masks(found: Sequence[Prediction], folder: Path) -> dict[str, Path]:
    """A PNG for each picture; two pictures of one name get numbers."""
    from PIL import Image

    from frostline._files import output_errors, replacing

    written: dict[str, Path] = {}
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for prediction in found:
            if prediction.mask is None:
                continue
            stem = Path(prediction.file).stem
            names = (f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, 10**6)))
            path = next(folder / n for n in names if folder / n not in written.values())
            with replacing(path) as temporary:
                Image.fromarray(prediction.mask.numpy()).save(temporary, format="PNG")
            written[prediction.file] = path
    return written


def _print_csv(
    asked: Sequence[Path],
    predictions: Sequence[Prediction],
    broken: Mapping[Path, ImageError],
    top: int,
) -> None:
    """A row for each file in the order asked for; of one that cannot be read it has the reason."""
    cells = [cells_of(prediction, top) for prediction in predictions]
    heads = list(dict.fromkeys(head for row in cells for head in row)) or heads_of(top)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", *heads, "error"])
    rest = iter(cells)
    for file in asked:
        row = {} if file in broken else next(rest)
        writer.writerow([file, *(row.get(head, "") for head in heads), broken.get(file, "")])
