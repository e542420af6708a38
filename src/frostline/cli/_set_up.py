"""A model with its head and something to try it on, for verbs that look before anything runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from frostline.cli import _options as options
from frostline.errors import DataError, ImageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frostline.choices import HeadPlace
    from frostline.data import Splits
    from frostline.models import LoadedModel
    from frostline.preprocessing import Preprocessing

_PICTURES = 8  # of the data in the example
_NOISE = 4


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """A model with its head, and what to try it on.

    Attributes:
        about: the example, for people.
    """

    loaded: LoadedModel
    example: Tensor
    targets: Tensor | None
    about: str


def splits_of(data: Path | None, *, file: str, label: str, split: str) -> Splits | None:
    """The pictures of `--data`, divided as `frostline train` does; None without it.

    Args:
        file, label, split: the columns of a table.
    """
    from frostline.data import read_splits

    if data is None:
        if (file, label, split) != ("file", "label", ""):
            raise typer.BadParameter("columns are those of a table; give it with --data.")
        return None
    return read_splits(data, file_column=file, label_column=label, split_column=split)


def set_up(
    name: str,
    weights: str,
    *,
    on: HeadPlace,
    head: str,
    classes: int,
    data: Path | None = None,
    splits: Splits | None = None,
) -> ModelSetup:
    """Build the model as `frostline train` would, and pictures for it: of the data, or noise."""
    wanted = classes if splits is None else len(splits.train.classes)
    loaded = build_model(name, weights, on=on, head=head, classes=wanted)
    if splits is None:
        noise = _noise(loaded.of_pictures)
        return ModelSetup(loaded, noise, None, f"{_NOISE} pictures of noise")
    example, targets = _pictures(splits, loaded.of_pictures)
    return ModelSetup(loaded, example, targets, f"{len(example)} pictures of {data}")


def build_model(
    name: str, weights: str = "none", *, on: HeadPlace, head: str, classes: int = 2
) -> LoadedModel:
    """The model with its new head, or with its own classifier as the head."""
    from frostline.models import ModelSpec, build, load_model

    hidden = options.hidden_widths(head, on=on)
    if on == "keep":
        built = build(ModelSpec.parse(name), weights=weights, seed=0)
        return replace(built, head="stage:-1")
    return load_model(name, weights=weights, classes=classes, hidden=hidden, on=on)


def freeze_as_asked(model: nn.Module, freeze: str | None, train: str | None) -> None:
    """Freeze what the options say; nothing where neither was given."""
    from frostline.freezing import freeze as freeze_part
    from frostline.freezing import train_only

    if freeze is not None:
        freeze_part(model, freeze)
    elif train is not None:
        train_only(model, train)


def as_words(*, head: str, on: HeadPlace, batch_size: int = 32) -> list[str]:
    """Options that differ from what `frostline train` takes by default, as words of a command."""
    words = ["--on", on] if on != "classifier" else []
    words += ["--head", head] if head else []
    return words + (["--batch-size", str(batch_size)] if batch_size != 32 else [])


def check_one_of(**given: object) -> None:
    """Refuse several options of which each says what is frozen."""
    names = [f"--{name}" for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise typer.BadParameter(
            f"give one of {' and '.join(names)}; each of them says what is frozen."
        )


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
    """A few training pictures from all over the set; those that cannot be read are passed over."""
    import torch

    from frostline.data import ImageDataset, levels_of

    samples = splits.train.samples
    step = max(1, len(samples) // _PICTURES)
    order = [*range(0, len(samples), step), *range(len(samples))]
    levels = levels_of(samples[index].path for index in order[:_PICTURES])
    dataset = ImageDataset(splits.train, preprocessing, levels=levels)
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
