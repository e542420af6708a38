"""Pictures as a run reads, checks and loads them, whatever it learns of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from frostline.choices import DecodingName
from frostline.config import RunSettings
from frostline.data import (
    Audit,
    Augment,
    ImageDataset,
    ImageSamples,
    ImageSet,
    KeptFrames,
    SoundPictures,
    Splits,
    TargetKind,
    audit,
    read_set,
    read_splits,
    read_task_set,
    read_task_splits,
)
from frostline.errors import ConfigError, FrostlineError
from frostline.features import probable_decoding
from frostline.models import LoadedModel
from frostline.preprocessing import Preprocessing
from frostline.records import BY_MODEL
from frostline.session import store_folder
from frostline.wording import option

_OF_PICTURES = ("multilabel", "regression", "segmentation")


def splits_of(settings: RunSettings) -> Splits:
    """The run's pictures, divided as it divides them where all can be read.

    Raises:
        DataError, ConfigError: as `read_splits` and `read_task_splits`, or the task is none of
            pictures.
    """
    data, kind = settings.data, _kind(settings)
    options: dict[str, Any] = {
        "val_fraction": data.val_fraction,
        "folds": data.folds,
        "fold": data.fold,
        "seed": settings.training.seed,
        **_columns(settings),
    }
    if settings.task is None or kind is None:
        return read_splits(data.path, classes=data.classes, **options)
    return read_task_splits(
        data.path,
        task=kind,
        label_names=settings.task.labels,
        black_and_white=data.black_and_white,
        **options,
    )


def held_out_set(settings: RunSettings, data: Path, **columns: str) -> ImageSet:
    """Pictures of other data, to judge the run on.

    Args:
        columns: of a table, those that are not the run's.

    Raises:
        DataError: as `read_set`.
    """
    named, kind = _columns(settings, **columns), _kind(settings)
    if settings.task is None or kind is None:
        return read_set(data, classes=settings.data.classes, **named)
    return read_task_set(
        data,
        task=kind,
        label_names=settings.task.labels,
        black_and_white=settings.data.black_and_white,
        **named,
    )


def audited(
    splits: Splits,
    settings: RunSettings,
    loaded: LoadedModel,
    progress: Callable[[int, int], None] | None,
) -> Audit:
    """Every picture read once, as `audit` does; what is seen of it is kept for the run.

    Pictures that were found sound before, by this store, are not decoded to be checked.
    """
    data = settings.data
    return audit(
        splits,
        bad_images=data.bad_images,
        levels=data.levels,
        prefer_default=settings.preprocessing is not None and data.levels is None,  # resumed
        kept=_kept(splits, settings, loaded),
        sound=_sound(settings.features.store),
        progress=progress,
    )


def _sound(features: str) -> SoundPictures | None:
    """Beside the features; None where none are kept, or where whoever keeps them will say why."""
    if features == "off":
        return None
    with suppress(FrostlineError):
        return SoundPictures(store_folder(features) / "sound.txt")
    return None


def _kept(splits: Splits, settings: RunSettings, loaded: LoadedModel) -> KeptFrames | None:
    """Of pictures that are shown as they are, by the decoding that the run will probably choose."""
    is_plain = Augment.parse(settings.data.augment).kind == "none"
    if not is_plain or type(loaded.of_pictures) is not Preprocessing:  # which may do otherwise
        return None
    return KeptFrames(loaded.of_pictures, decoding=_decoding(splits, settings, loaded))


def _decoding(splits: Splits, settings: RunSettings, loaded: LoadedModel) -> DecodingName | None:
    """None for JPEGs so small that they are soon decoded while the model is followed."""
    form = next(iter(settings.features.forms), "")
    samples = ImageSamples(ImageDataset(splits.train, loaded.of_pictures))
    if not samples.worth_less(1):
        return None
    if form == BY_MODEL or settings.features.store == "off":
        return "full"
    planned = len(splits.train) + len(splits.val)
    return probable_decoding(samples, settings.training.prefix_precision, form, planned)


def datasets(
    found: Audit, settings: RunSettings, loaded: LoadedModel
) -> tuple[ImageDataset, ImageDataset]:
    """Training pictures with the augmentation asked for, validation pictures without."""
    splits, augment = found.splits, Augment.parse(settings.data.augment)
    made = partial(
        ImageDataset,
        preprocessing=loaded.of_pictures,
        digests=found.digests,
        levels=found.levels,
        kept=found.kept,
    )
    trained = made(splits.train, augment=augment, seed=settings.training.seed)
    return trained, made(splits.val)


def _kind(settings: RunSettings) -> TargetKind | None:
    """What the targets are, if no classes."""
    if settings.task is None or settings.task.kind == "classification":
        return None
    if settings.task.kind not in _OF_PICTURES:
        raise ConfigError(
            f"the task {settings.task.kind} is one of texts, and these are pictures. Use "
            f"classification, {', '.join(_OF_PICTURES)} ({option('task')})."
        )
    return cast("TargetKind", settings.task.kind)


def _columns(settings: RunSettings, **others: str) -> dict[str, str]:
    names = ("file_column", "label_column", "split_column")
    return {name: others.get(name) or getattr(settings.data, name) for name in names}
