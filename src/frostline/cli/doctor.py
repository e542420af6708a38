"""`frostline doctor MODEL`: what is wrong with a set-up, before it is trained."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options
from frostline.cli._set_up import ModelSetup, check_one_of, freeze_as_asked, set_up

if TYPE_CHECKING:
    import torch
    from torch import nn

    from frostline.checkup import Checkup


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
    classes: options.Classes = 10,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate that AdamW would have.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what is wrong with a set-up, the worst first, without training.

    The model is built, given a head and frozen as `frostline train` would do it with the same
    options; by default everything but the head. A few pictures go through it and back. Exit
    status 1 where a finding is an error, else 0.
    """
    from frostline.cli._terminal import show

    check_one_of(freeze=freeze, train=train, plan=plan)
    if plan is not None and lr is not None:
        raise typer.BadParameter("a plan's phases have rates of their own; leave out --lr.")
    if lr is not None and not 0 < lr < float("inf"):
        raise typer.BadParameter("a learning rate is above 0, as 1e-3.", param_hint="--lr")
    setup = set_up(model, weights, on=on, head=head, data=data, classes=classes)
    found = _checkup(setup, freeze, train, plan, lr)
    document = {"model": model, "example": setup.about, **found.as_dict()}
    show(document, [f"{model}, on {setup.about}", str(found)], as_json=json)
    if not found.ok:
        raise typer.Exit(1)


def _checkup(
    setup: ModelSetup, freeze: str | None, train: str | None, plan: Path | None, lr: float | None
) -> Checkup:
    from frostline.checkup import doctor as check
    from frostline.data import ImageDataset
    from frostline.freezing import train_only
    from frostline.plans import Plan

    if freeze is None and train is None:
        train_only(setup.model, setup.head)  # also what a plan's first phase may go on with
    splits = setup.splits
    parts = (splits.train, splits.val) if splits else ()
    data = [ImageDataset(part, setup.preprocessing) for part in parts] or [None, None]
    found = check(
        setup.model,
        setup.example,
        targets=setup.targets,
        optimizer=None if lr is None else _optimizer(setup.model, freeze, train, lr),
        classes=len(splits.train.classes) if splits else None,
        freeze=freeze,
        train=train,
        plan=None if plan is None else Plan.load(plan),
        train_data=data[0],
        val_data=data[1],
    )
    wanting = {"--data": splits, "--lr": lr if plan is None else plan}
    return replace(found, not_given=tuple(n for n, value in wanting.items() if value is None))


def _optimizer(
    model: nn.Module, freeze: str | None, train: str | None, lr: float
) -> torch.optim.Optimizer | None:
    """What would train, frozen as asked; None where that cannot be, which the checkup says."""
    import torch

    from frostline.errors import FreezeError, SelectorError
    from frostline.groups import param_groups

    with suppress(FreezeError, SelectorError):
        freeze_as_asked(model, freeze, train)
        return torch.optim.AdamW([dict(group) for group in param_groups(model, lr=lr)])
    return None
