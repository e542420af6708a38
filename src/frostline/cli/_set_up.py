"""A model with its head and something to try it on, for verbs that look before anything runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import typer

from frostline.cli import _options as options
from frostline.errors import DataError, ImageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frostline.choices import HeadPlace
    from frostline.cli._tasks import AskedTask
    from frostline.config import DataSettings, RunSettings
    from frostline.data import Batch, ImageDataset, Sample, Splits
    from frostline.models import LoadedModel
    from frostline.preprocessing import Preprocessing
    from frostline.runs.material import Divided
    from frostline.tasks import Task

_SAMPLES = 8  # of the data in the example
_NOISE = 4
_TEXTS = (
    "A text of a few words.",
    "Another one, which is somewhat longer than the first, as texts are.",
    "Short.",
    "The last of them, in two sentences. They say nothing.",
)


@final
@dataclass(frozen=True, slots=True)
class ModelSetup:
    """A model with its head, and what to try it on.

    Attributes:
        example: a batch of real samples, or of noise.
        targets: of the example; None for noise.
        about: the example, for people.
        task: what is learnt; of noise a classification.
        settings: of the data, as `frostline train` would have them; None without any.
        splits: the data, divided as `frostline train` does; None without any.
    """

    loaded: LoadedModel
    example: Any
    targets: Tensor | None
    about: str
    task: Task
    settings: RunSettings | None = None
    splits: Divided | None = None


def data_settings(
    model: str, data: Path | None, task: AskedTask, **columns: Any
) -> RunSettings | None:
    """What `--data` and its columns say, as settings of a run; None without it."""
    from frostline import config

    if data is None:
        usual = config.DataSettings()
        if any(value != getattr(usual, name) for name, value in columns.items()):
            raise typer.BadParameter("columns are those of a table; give it with --data.")
        return None
    with options.usage_errors():
        settings = config.RunSettings(
            model=config.ModelSettings(name=model), data=read_as(data, model, **columns)
        )
    return settings.model_copy(update={"task": task.of(settings.data)})


def read_as(data: Path, model: str, *, text_column: str, **others: Any) -> DataSettings:
    """How data are read for a model: as texts where that takes them, or a column is named."""
    from frostline import config
    from frostline.models import reads_texts

    is_text = bool(text_column) or reads_texts(model)
    return config.DataSettings(path=str(data), is_text=is_text, text_column=text_column, **others)


def set_up(
    name: str,
    weights: str,
    *,
    on: HeadPlace,
    head: str,
    classes: int,
    settings: RunSettings | None = None,
) -> ModelSetup:
    """Build the model as `frostline train` would, and samples for it: of the data, or noise."""
    from frostline.runs import material
    from frostline.runs.preparing import task_for
    from frostline.tasks import Classification

    if settings is None:
        loaded = build_model(name, weights, on=on, head=head, classes=classes)
        example, about = _noise(loaded)
        return ModelSetup(loaded, example, None, about, Classification(classes))
    splits = material.read(settings)
    task = task_for(settings.task, splits.names, splits.classes)
    is_of_tokens = settings.task is not None and settings.task.kind == "tokens"
    loaded = build_model(name, weights, on=on, head=head, classes=task.width, tokens=is_of_tokens)
    few, about = _few(splits, loaded)
    batch = first_batch_of(few, task)
    about = f"{len(batch.targets)} {about} of {settings.data.path}"
    return ModelSetup(loaded, batch.inputs, batch.targets, about, task, settings, splits)


def build_model(
    name: str,
    weights: str = "none",
    *,
    on: HeadPlace,
    head: str,
    classes: int = 2,
    tokens: bool = False,
) -> LoadedModel:
    """The model with its new head, or with its own classifier as the head."""
    from frostline.models import ModelSpec, build, load_model

    hidden = options.hidden_widths(head, on=on)
    if on == "keep":
        built = build(ModelSpec.parse(name), weights=weights, seed=0, tokens=tokens)
        return replace(built, head="stage:-1")
    return load_model(name, weights=weights, classes=classes, hidden=hidden, on=on, tokens=tokens)


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


def _noise(loaded: LoadedModel) -> tuple[Any, str]:
    """A batch of what no network has seen, and what it is, for people."""
    import torch
    from PIL import Image

    from frostline.data import TextSamples
    from frostline.preprocessing import Preprocessing

    if not isinstance(loaded.preprocessing, Preprocessing):
        samples = TextSamples(_TEXTS, None, loaded.of_texts)
        return samples.collate([samples.load(row) for row in range(len(samples))]), (
            f"{len(samples)} made-up texts"
        )
    drawn = torch.Generator().manual_seed(0)
    height, width = loaded.preprocessing.crop
    pictures = (
        torch.randint(256, (height, width, 3), generator=drawn, dtype=torch.uint8)
        for _ in range(_NOISE)
    )
    made = [loaded.preprocessing.to_tensor(Image.fromarray(one.numpy())) for one in pictures]
    return torch.stack(made), f"{_NOISE} pictures of noise"


def _few(splits: Divided, loaded: LoadedModel) -> tuple[Any, str]:
    """A few training samples from all over the set, and what they are, for people."""
    from frostline.data import TextSplits, text_samples

    if isinstance(splits, TextSplits):
        step = max(1, len(splits.train) // _SAMPLES)
        few = splits.train.at(range(0, len(splits.train), step)[:_SAMPLES])
        return text_samples(few, loaded.of_texts, splits.classes), "texts"
    return _pictures(splits, loaded.of_pictures), "pictures"


def first_batch_of(samples: Any, task: Task) -> Batch:
    """All of a few samples as one batch."""
    from frostline.data import first_batch, open_data

    opened = open_data(samples)
    return first_batch(opened, len(opened), task.targets)


def _pictures(splits: Splits, preprocessing: Preprocessing) -> ImageDataset:
    """Pictures that can be read."""
    from frostline.data import ImageDataset, levels_of

    samples = splits.train.samples
    step = max(1, len(samples) // _SAMPLES)
    order = [*range(0, len(samples), step), *range(len(samples))]
    levels = levels_of(samples[index].path for index in order[:_SAMPLES])
    dataset = ImageDataset(splits.train, preprocessing, levels=levels)
    found: dict[int, Sample] = {}
    for index in order:
        if len(found) == min(_SAMPLES, len(dataset)):
            break
        with suppress(ImageError):
            dataset.picture(index, 0)
            found[index] = samples[index]
    if not found:
        raise DataError("no training picture can be read. See `frostline train` for each.")
    few = replace(splits.train, samples=tuple(found.values()))
    return ImageDataset(few, preprocessing, levels=levels)
