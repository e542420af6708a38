"""`frostline doctor MODEL`: what is wrong with a set-up, before it is trained."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options
from frostline.cli._set_up import (
    ModelSetup,
    check_one_of,
    data_settings,
    freeze_as_asked,
    set_up,
)
from frostline.cli._tasks import AskedTask
from frostline.errors import FreezeError, SelectorError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from frostline.runs.material import Audited


# Long since each option has a line here and one in the call.
def doctor(
    model: options.ModelName,
    *,
    weights: options.Weights = "none",
    freeze: options.Freeze = None,
    train: options.Train = None,
    plan: options.PlanFile = None,
    head: options.Head = "",
    on: options.On = "classifier",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures to try the model on, as `train` takes them; noise without it.",
            metavar="DATA",
        ),
    ] = None,
    task: options.TaskKind = "auto",
    file_column: options.FileColumn = "file",
    text_column: options.TextColumn = "",
    label_column: options.LabelColumn = "label",
    split_column: options.SplitColumn = "",
    classes: options.Classes = 10,
    lr: Annotated[float | None, options.number("Peak learning rate that AdamW would have.")] = None,
    json: options.Json = False,
) -> None:
    """Say what is wrong with a set-up, the worst first, without training.

    The model is built, given a head and frozen as `frostline train` would do it with the same
    options; by default everything but the head. Every picture is read; a few go through the model
    and back. Exit status 1 where a finding is an error, else 0.
    """
    from frostline.checkup import doctor as check
    from frostline.cli._terminal import show, warn
    from frostline.freezing import train_only
    from frostline.plans import Plan
    from frostline.runs.material import datasets

    check_one_of(freeze=freeze, train=train, plan=plan)
    if plan is not None and lr is not None:
        raise typer.BadParameter("a plan's phases have rates of their own; leave out --lr.")
    if lr is not None and not 0 < lr < float("inf"):
        raise typer.BadParameter("a learning rate is above 0, as 1e-3.", param_hint="--lr")
    settings = data_settings(
        model,
        data,
        AskedTask(task),
        file_column=file_column,
        text_column=text_column,
        label_column=label_column,
        split_column=split_column,
    )
    setup = set_up(model, weights, on=on, head=head, classes=classes, settings=settings)
    read = _audited(setup)
    # What is in both splits is a finding of the checkup already.
    odd = [f for f in read.findings if f.code != "train-val-overlap"] if read else []
    network = setup.loaded.model
    if freeze is None and train is None:
        train_only(network, setup.loaded.head)  # also what a plan's first phase may go on with
    train_data = val_data = None
    if read and setup.settings:
        train_data, val_data = datasets(read, setup.settings, setup.loaded)
    found = check(
        network,
        setup.example,
        targets=setup.targets,
        optimizer=None if lr is None else _optimizer(network, freeze, train, lr),
        classes=len(read.splits.classes) or None if read else None,
        task=setup.task,
        freeze=freeze,
        train=train,
        plan=None if plan is None else Plan.load(plan),
        train_data=train_data,
        val_data=val_data,
    )
    wanting = {"--data": setup.splits, "--lr": lr if plan is None else plan}
    found = replace(found, not_given=tuple(n for n, value in wanting.items() if value is None))
    for finding in odd:
        warn(finding.message)
    about_data = {"example": setup.about, "data": [asdict(finding) for finding in odd]}
    document = {"model": model, **about_data, **found.as_dict()}
    show(document, [f"{model}, on {setup.about}", str(found)], as_json=json)
    if not found.ok:
        raise typer.Exit(1)


def _audited(setup: ModelSetup) -> Audited | None:
    """Every sample looked at, as `frostline train` does before it begins."""
    from frostline.cli._terminal import counting
    from frostline.runs.material import audited

    if setup.splits is None or setup.settings is None:
        return None
    with counting("checking the data") as progress:
        return audited(setup.splits, setup.settings, setup.loaded, progress)


def _optimizer(
    model: nn.Module, freeze: str | None, train: str | None, lr: float
) -> torch.optim.Optimizer | None:
    """What would train, frozen as asked; None where that cannot be, which the checkup says."""
    import torch

    from frostline.groups import param_groups

    with suppress(FreezeError, SelectorError):
        freeze_as_asked(model, freeze, train)
        return torch.optim.AdamW([dict(group) for group in param_groups(model, lr=lr)])
    return None
