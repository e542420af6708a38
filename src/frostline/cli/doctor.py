"""`frostline doctor MODEL`: what is wrong with a set-up, before it is trained."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from frostline.checkup import Checkup
    from frostline.config import HeadPlace
    from frostline.data import Splits
    from frostline.plans import Plan
    from frostline.preprocessing import Preprocessing

_PICTURES = 8  # of the data in the example
_NOISE = 4


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            help="alexnet, torchvision:NAME, timm:NAME or file.py:function.", metavar="MODEL"
        ),
    ],
    *,
    weights: options.Weights = "none",
    freeze: options.Freeze = None,
    train: options.Train = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Phases to train in, as `frostline plan` writes them.", metavar="FILE"),
    ] = None,
    head: options.Head = "",
    on: options.On = "classifier",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures to try the model on, as `train` takes them; noise without it.",
            metavar="DATA",
        ),
    ] = None,
    classes: Annotated[int, typer.Option(help="How many, without --data.", min=1)] = 10,
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
    from frostline.cli._terminal import output, print_json, say

    _check_together(freeze, train, plan, lr)
    setup = _set_up(model, weights, on=on, head=head, data=data, classes=classes)
    found = _checkup(setup, freeze, train, plan, lr)
    if json:
        print_json({"model": model, "example": setup.about, **found.as_dict()})
    else:
        page = output()
        say(page, f"{model}, on {setup.about}\n")
        say(page, str(found))
    if not found.ok:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Setup:
    """A model with its head, and what to try it on.

    Attributes:
        head: selector of what trains by default.
        about: the example, for people.
    """

    model: nn.Module
    head: str
    preprocessing: Preprocessing
    splits: Splits | None
    example: Tensor
    targets: Tensor | None
    about: str


def _check_together(
    freeze: str | None, train: str | None, plan: Path | None, lr: float | None
) -> None:
    given = {"--freeze": freeze, "--train": train, "--plan": plan}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise typer.BadParameter(f"give one of {' and '.join(names)}; they say the same.")
    if plan is not None and lr is not None:
        raise typer.BadParameter("a plan's phases have rates of their own; leave out --lr.")
    if lr is not None and not 0 < lr < float("inf"):
        raise typer.BadParameter("a learning rate is above 0, as 1e-3.", param_hint="--lr")


def _set_up(
    name: str, weights: str, *, on: HeadPlace, head: str, data: Path | None, classes: int
) -> _Setup:
    from frostline.data import read_splits
    from frostline.models import ModelSpec, build, load_model

    hidden = options.hidden_widths(head, on=on)
    splits = None if data is None else read_splits(data)
    if on == "keep":
        built = build(ModelSpec.parse(name), weights=weights, seed=0)
        model, place, preprocessing = built.model, "stage:-1", built.preprocessing
    else:
        wanted = classes if splits is None else len(splits.train.classes)
        loaded = load_model(name, weights=weights, classes=wanted, hidden=hidden, on=on)
        model, place, preprocessing = loaded.model, loaded.head, loaded.preprocessing
    if splits is None:
        example, targets, about = _noise(preprocessing), None, f"{_NOISE} pictures of noise"
    else:
        example, targets = _pictures(splits, preprocessing)
        about = f"{len(example)} pictures of {data}"
    return _Setup(model, place, preprocessing, splits, example, targets, about)


def _noise(preprocessing: Preprocessing) -> Tensor:
    import torch
    from PIL import Image

    drawn = torch.Generator().manual_seed(0)
    height, width = preprocessing.crop
    pictures = (
        torch.randint(256, (height, width, 3), generator=drawn, dtype=torch.uint8)
        for _ in range(_NOISE)
    )
    return torch.stack(
        [preprocessing.to_tensor(Image.fromarray(picture.numpy())) for picture in pictures]
    )


def _pictures(splits: Splits, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """A few training pictures from all over the set; those that cannot be read are passed over.

    Raises:
        DataError: none can be read.
    """
    import torch

    from frostline.data import ImageDataset
    from frostline.errors import DataError, ImageError

    dataset = ImageDataset(splits.train, preprocessing)
    step = max(1, len(dataset) // _PICTURES)
    order = [*range(0, len(dataset), step), *range(len(dataset))]
    found: dict[int, tuple[Tensor, int]] = {}
    for index in order:
        if len(found) == min(_PICTURES, len(dataset)):
            break
        with suppress(ImageError):
            found[index] = dataset[index]
    if not found:
        raise DataError("no training picture can be read. See `frostline train` for each.")
    pictures, labels = zip(*found.values(), strict=True)
    return torch.stack(pictures), torch.tensor(labels)


def _checkup(
    setup: _Setup, freeze: str | None, train: str | None, plan: Path | None, lr: float | None
) -> Checkup:
    from frostline.checkup import doctor as check
    from frostline.data import ImageDataset
    from frostline.freezing import train_only
    from frostline.plans import Plan

    if freeze is None and train is None:
        train_only(setup.model, setup.head)  # also what a plan's first phase may go on with
    phases: Plan | None = Plan.load(plan) if plan is not None else None
    splits = setup.splits
    train_data = ImageDataset(splits.train, setup.preprocessing) if splits else None
    val_data = ImageDataset(splits.val, setup.preprocessing) if splits else None
    found = check(
        setup.model,
        setup.example,
        targets=setup.targets,
        optimizer=None if lr is None else _optimizer(setup.model, freeze, train, lr),
        classes=len(splits.train.classes) if splits else None,
        freeze=freeze,
        train=train,
        plan=phases,
        train_data=train_data,
        val_data=val_data,
    )
    wanting = {"--data": splits, "--lr": lr if plan is None else plan}
    return replace(found, not_given=tuple(n for n, value in wanting.items() if value is None))


def _optimizer(
    model: nn.Module, freeze: str | None, train: str | None, lr: float
) -> torch.optim.Optimizer | None:
    """What would train, frozen as asked; None where that cannot be, which the checkup tells."""
    import torch

    from frostline.errors import FreezeError, SelectorError
    from frostline.freezing import freeze as freeze_part
    from frostline.freezing import train_only
    from frostline.groups import param_groups

    with suppress(FreezeError, SelectorError):
        if freeze is not None:
            freeze_part(model, freeze)
        elif train is not None:
            train_only(model, train)
        return torch.optim.AdamW([dict(group) for group in param_groups(model, lr=lr)])
    return None
