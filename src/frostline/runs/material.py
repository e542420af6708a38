"""What a run learns from, read and checked: pictures or texts, asked for in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import xxhash

from frostline._files import file_digest
from frostline.config import RunSettings
from frostline.data import (
    Audit,
    ImageDataset,
    ImageSet,
    MaskFile,
    Samples,
    Splits,
    TextSet,
    TextSplits,
    in_order,
    text_samples,
)
from frostline.errors import ConfigError
from frostline.models import LoadedModel
from frostline.runs import pictures, texts
from frostline.runs.texts import TextAudit
from frostline.tasks import Task
from frostline.wording import option

Divided: TypeAlias = Splits | TextSplits
Audited: TypeAlias = Audit | TextAudit
Part: TypeAlias = ImageSet | TextSet


def read(settings: RunSettings) -> Divided:
    """The run's data, divided as it divides them where all can be read.

    Raises:
        DataError, ConfigError: the data cannot be read, or not for this task.
    """
    if not settings.data.is_text:
        return pictures.splits_of(settings)
    if settings.data.augment != "none":
        raise ConfigError(f"texts have no views. Leave out {option('augment')}.")
    return texts.splits_of(settings)


def ordered(splits: Divided, settings: RunSettings, order: tuple[str, ...]) -> Divided:
    """The same data, with labels that count through `order`."""
    if isinstance(splits, Splits):
        return in_order(splits, order)
    return texts.splits_of(_with_classes(settings, order))


def audited(
    splits: Divided,
    settings: RunSettings,
    loaded: LoadedModel,
    progress: Callable[[int, int], None] | None,
) -> Audited:
    """Every sample looked at once."""
    if isinstance(splits, Splits):
        return pictures.audited(splits, settings, loaded, progress)
    return texts.audited(splits, settings, loaded)


def contents(found: Audited) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The content digests of what is trained on, and of what is validated on."""
    if isinstance(found, Audit):
        return found.contents(found.splits.train), found.contents(found.splits.val)
    return texts.contents_of(found.splits.train), texts.contents_of(found.splits.val)


def all_contents(found: Audited) -> list[str]:
    """The content digests of all parts."""
    if isinstance(found, Audit):
        every = [found.contents(part) for part in found.splits.sets.values()]
    else:
        every = [texts.contents_of(part) for part in found.splits.sets.values()]
    return [digest for part in every for digest in part]


def targets_digest(found: Audited, trained_on: Sequence[str], validated_on: Sequence[str]) -> str:
    """A hash of what each sample is labelled with; both are what `contents` gives."""
    hashed = xxhash.xxh3_128()
    parts = (found.splits.train, trained_on), (found.splits.val, validated_on)
    for part, digests in parts:
        pairs = zip(digests, _said(part), strict=True)
        hashed.update("\n".join(sorted(f"{digest} {said}" for digest, said in pairs)).encode())
    return hashed.hexdigest()


def _said(part: Part) -> list[str]:
    if isinstance(part, TextSet):
        return list(map(str, part.said))
    targets = ((sample.target, sample.label) for sample in part.samples)
    return [
        file_digest(target.path)
        if isinstance(target, MaskFile)
        else str(part.classes[label] if target is None else target)
        for target, label in targets
    ]


def datasets(
    found: Audited, settings: RunSettings, loaded: LoadedModel
) -> tuple[ImageDataset | Samples, ImageDataset | Samples]:
    """What to train on, and what to validate on."""
    if isinstance(found, Audit):
        return pictures.datasets(found, settings, loaded)
    return found.samples["train"], found.samples["val"]


def dataset(
    part: Part, settings: RunSettings, loaded: LoadedModel, task: Task, *, labelled: bool = True
) -> ImageDataset | Samples:
    """Samples to judge a run on, or to predict."""
    if isinstance(part, TextSet):
        # A regression has the name of a target, and no classes that its labels are of.
        classes = names_of(task) if part.has_words or task.classes else ()
        return text_samples(part, loaded.of_texts, classes, labelled=labelled)
    return ImageDataset(part, loaded.of_pictures, levels=settings.data.levels)


def names_of(task: Task) -> tuple[str, ...]:
    """Of its classes, labels, targets or tags: what the numbers that the head gives are of."""
    kept = task.settings()
    return kept.labels if kept else task.classes


def held_out_set(settings: RunSettings, data: Path, **columns: str) -> Part:
    """Other data to judge the run on; without columns, by those of the run.

    Raises:
        DataError: it cannot be read, or has classes that the run does not know.
    """
    of = texts if settings.data.is_text else pictures
    found: Part = of.held_out_set(settings, data, **columns)
    return found


def _with_classes(settings: RunSettings, classes: tuple[str, ...]) -> RunSettings:
    data = settings.data.model_copy(update={"classes": classes})
    return settings.model_copy(update={"data": data})
