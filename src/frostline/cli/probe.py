"""`frostline probe DATA --model M`: how well each stage's features serve, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from frostline.cli import _options as options
from frostline.cli import train as as_in_train
from frostline.cli._set_up import read_as
from frostline.cli._tasks import AskedTask
from frostline.recipe import Recipe

Features = Annotated[
    str,
    typer.Option(
        help="Folder of stored features; auto: in your cache folder; off: kept nowhere.",
        metavar="DIR|off",
    ),
]
Precision = Annotated[
    str,
    typer.Option(help="Of the pass: exact, auto, or the relative error to allow.", metavar="P"),
]


# Long since each option has a line here and one in the settings that it becomes.
def probe(
    context: typer.Context,
    data: options.Data,
    *,
    model: options.Model = "",
    weights: options.Weights = "DEFAULT",
    head: options.Head = "",
    on: options.On = "classifier",
    task: options.TaskKind = "auto",
    batch_size: options.BatchSize = 32,
    max_tokens: as_in_train.MaxTokens = None,
    file_column: options.FileColumn = "file",
    text_column: options.TextColumn = "",
    label_column: options.LabelColumn = "label",
    split_column: options.SplitColumn = "",
    val_fraction: as_in_train.ValFraction = 0.2,
    bad_images: as_in_train.OnBadImages = "skip",
    seed: Annotated[int, typer.Option(help="Of the division of undivided data.")] = 0,
    features: Features = "auto",
    precision: Precision = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Say how well each stage's features serve, and what freezing up to it costs.

    One pass over the data; a linear probe on what each stage hands to the next. Ends with the
    stage to cut after, and the command that trains what is above it. Nothing is trained, and the
    features are kept: a second probe runs no forward pass.
    """
    from frostline import config
    from frostline.cli._terminal import counting, notes, show
    from frostline.probing import probe as work_out
    from frostline.runs import prepare

    if not model:
        raise typer.BadParameter("say which network, as --model resnet18.", param_hint="--model")
    hidden = options.hidden_widths(head, on=on)
    with options.usage_errors():
        asked: dict[str, Any] = {"seed": seed, "precision": _precision(precision)}
        recipe = Recipe(**asked)
        settings = config.RunSettings(
            model=config.ModelSettings(name=model, weights=weights, on=on, hidden=hidden),
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
            training=recipe,
            device=device,
        )
    settings = settings.model_copy(update={"task": AskedTask(task).of(settings.data)})
    with counting("checking the data") as progress:
        prepared = prepare(settings, progress=progress)
    as_in_train.say_findings(prepared, notes())
    train, val = prepared.datasets()
    with counting("computing features") as progress:
        found = work_out(
            prepared.loaded.model,
            train,
            val,
            task=prepared.task,
            batch_size=batch_size,
            features=as_in_train.store_named(features),
            precision=recipe.prefix_precision,
            device=device,
            progress=progress,
        )
    found = replace(found, command=(*_command(context), "--train", found.cut_after.train))
    show(found.as_dict(), found.tables(), as_json=json)


def _precision(text: str) -> object:
    """Wrong usage of a form of training, which computes no features."""
    return text if text in ("exact", "auto") else options.as_number(text, "--precision")


def _command(context: typer.Context) -> list[str]:
    """`frostline train` with what was typed here, as far as it heeds that."""
    words = ["frostline", "train", str(context.params["data"])]
    for parameter in context.command.params:
        name = str(parameter.name)
        source, value = context.get_parameter_source(name), context.params[name]
        if source is None or source.name != "COMMANDLINE" or name in ("data", "json"):
            continue
        if (name, value) != ("features", "off"):  # which would compute them in each epoch
            words += [parameter.opts[0], str(value)]
    return words
