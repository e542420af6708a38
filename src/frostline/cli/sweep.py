"""`frostline sweep DATA --model M`: many settings on stored features, together."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli import _options as options
from frostline.cli import train as as_in_train
from frostline.cli._options import with_recipe
from frostline.cli._set_up import check_one_of, read_as
from frostline.cli._tasks import AskedTask
from frostline.recipe import Recipe

if TYPE_CHECKING:
    from frostline.choices import HeadPlace
    from frostline.config import RunSettings
    from frostline.runs import Prepared
    from frostline.sweeps.settings import Asked

_Numbers = tuple[float, ...]


def _numbers(text: str, option: str) -> _Numbers:
    """`"1e-3,1e-2"` -> `(0.001, 0.01)`."""
    parts = [part for part in text.split(",") if part.strip()]
    if text and not parts:
        raise typer.BadParameter(f"no number stands in '{text}'.", param_hint=option)
    return tuple(options.as_number(part, option) for part in parts)


def _several(description: str) -> Any:
    return typer.Option(help=f"{description}; several with commas between.", metavar="N,N")


# Long since each option has a line here and one in the settings that it becomes.
@with_recipe
def sweep(
    data: options.Data,
    *,
    model: options.Model,
    out: Annotated[Path | None, typer.Option(help="Folder for the winner's run.")] = None,
    lr: Annotated[str, _several("Peak learning rates")] = "",
    weight_decay: Annotated[str, _several("Weight decays")] = "",
    heads: Annotated[
        str,
        typer.Option(help="Hidden widths of heads, as linear,100,256-64.", metavar="WIDTHS,WIDTHS"),
    ] = "",
    dropout: Annotated[str, _several("Probabilities of dropout")] = "",
    seeds: Annotated[str, _several("Seeds of order, dropout and new heads")] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Train all to the end; drop no losers early.")
    ] = False,
    task: options.TaskKind = "auto",
    weights: options.Weights = "DEFAULT",
    freeze: options.Freeze = None,
    train: options.Train = None,
    norm: options.Norm = "hold",
    plan: options.PlanFile = None,
    on: options.On = "classifier",
    batch_size: options.BatchSize = 32,
    max_tokens: as_in_train.MaxTokens = None,
    file_column: options.FileColumn = "file",
    text_column: options.TextColumn = "",
    label_column: options.LabelColumn = "label",
    split_column: options.SplitColumn = "",
    val_fraction: as_in_train.ValFraction = 0.2,
    bad_images: as_in_train.OnBadImages = "skip",
    features: as_in_train.Features = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    **recipe: Any,
) -> None:
    """Try many settings on features that are computed once, and train the best as a run.

    Every combination of the values is a member; those of one shape are trained together, and
    losers are dropped early. The winner becomes a run folder with its proof, beside a table of all.
    """
    from frostline import config
    from frostline.sweeps.settings import Asked, every_setting, refuse_plan
    from frostline.world import refuse_several

    refuse_several("a sweep")
    with options.usage_errors():
        refuse_plan(plan)
    check_one_of(freeze=freeze, train=train)
    if features == "off":
        raise typer.BadParameter("a sweep trains on stored features.", param_hint="--features")
    drawn = tuple(map(_whole, seeds.split(","))) if seeds else None
    asked = Asked(
        _numbers(lr, "--lr") or None,
        _numbers(weight_decay, "--weight-decay") or None,
        _heads(heads, on),
        _numbers(dropout, "--dropout") or None,
        drawn,
        drop=not every,
    )
    with options.usage_errors():
        settings = config.RunSettings(
            model=config.ModelSettings(name=model, weights=weights, on=on),
            data=read_as(
                data,
                model,
                text_column=text_column,
                max_tokens=max_tokens,
                file_column=file_column,
                label_column=label_column,
                split_column=split_column,
                val_fraction=val_fraction,
                bad_images=bad_images,
                batch_size=batch_size,
            ),
            freeze=config.FreezeSettings(freeze=freeze, train=train, norm=norm),
            training=Recipe(**{**recipe, "seed": drawn[0] if drawn else recipe["seed"]}),
            features=config.FeatureSettings(store=as_in_train.store_named(features)),
            device=device,
        )
    with options.usage_errors():
        every_setting(settings.training, asked, usual_lr=1.0)  # before the data are read
    _go(settings, out, asked, AskedTask(task), as_json=json)


def _heads(text: str, on: HeadPlace) -> list[tuple[int, ...]] | None:
    """As `fl.sweep` takes them; a new head's place is tried as it is by default."""
    if not text:
        return None if on == "keep" else [()]
    parts = [part.strip().replace("-", ",") for part in text.split(",")]
    return [() if part == "linear" else options.hidden_widths(part, on=on) for part in parts]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no whole number.", param_hint="--seeds") from None


def _go(
    settings: RunSettings,
    out: Path | None,
    asked: Asked,
    task: AskedTask,
    *,
    as_json: bool,
) -> None:
    from frostline.cli._terminal import counting, notes, output, print_json, say
    from frostline.sweeps.prepared import OfPrepared
    from frostline.sweeps.sweeping import swept

    aside = notes()
    page = aside if as_json else output()
    folder = out or as_in_train.free_folder(settings.model.name)
    prepared = _prepared(settings, folder, task)
    as_in_train.describe(prepared, page, aside)
    try:
        with counting("epochs of members") as progress:
            found = swept(OfPrepared(prepared), asked, out=folder, progress=progress)
    except KeyboardInterrupt:
        say(aside, f"Stopped. What is computed of the features is kept; {folder} holds no run yet.")
        raise typer.Exit(1) from None
    if as_json:
        print_json({"run": str(folder), **found.as_dict()})
        return
    page.print(found.table())
    say(page, f"Next: frostline predict {quote(str(folder))} FILE...")


def _prepared(settings: RunSettings, folder: Path, task: AskedTask) -> Prepared:
    """The data, looked through, once it is known that the folder may be written."""
    from frostline.cli._terminal import counting
    from frostline.records import RunFolder
    from frostline.runs import prepare

    as_in_train.check_apart(folder, Path(settings.data.path))
    RunFolder(folder).check_free()
    settings = settings.model_copy(update={"task": task.of(settings.data)})
    with counting("checking the data") as progress:
        return prepare(settings, progress=progress)
