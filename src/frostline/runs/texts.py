"""Texts as a run reads, checks and tokenises them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline.config import DataSettings, RunSettings
from frostline.data import (
    DataFinding,
    Levels,
    TextColumns,
    TextSamples,
    TextSet,
    TextSplits,
    audit_texts,
    cut_texts,
    read_text_set,
    read_texts,
    text_id,
    text_samples,
)
from frostline.errors import ConfigError
from frostline.models import LoadedModel
from frostline.wording import option

_OF_TEXTS = ("classification", "regression", "tokens")


@final
@dataclass(frozen=True, slots=True)
class TextAudit:
    """Texts that can be trained on; the same questions are answered as by `Audit` of pictures."""

    splits: TextSplits
    findings: tuple[DataFinding, ...]
    samples: Mapping[str, TextSamples]
    levels: Levels | None = None


def contents_of(texts: TextSet) -> tuple[str, ...]:
    """The content digest of each text."""
    return tuple(text_id(text).hex() for text in texts.texts)


def splits_of(settings: RunSettings) -> TextSplits:
    """The run's texts, divided as it divides them.

    Raises:
        DataError, ConfigError: as `read_texts`, or the task is none of texts.
    """
    data, kind = settings.data, "classification" if settings.task is None else settings.task.kind
    if kind not in _OF_TEXTS:
        raise ConfigError(
            f"tables of texts are not read for the task {kind}, which is learnt from samples of "
            f"your own. Use {', '.join(_OF_TEXTS[:-1])} or {_OF_TEXTS[-1]} ({option('task')})."
        )
    columns = columns_of(data)
    return read_texts(
        data.path,
        text=columns.text,
        label=columns.label,
        split=columns.split,
        val_fraction=data.val_fraction,
        folds=data.folds,
        fold=data.fold,
        seed=settings.training.seed,
        classes=data.classes,
        classify=kind != "regression",
        words=kind == "tokens",
    )


def is_of_words(settings: RunSettings) -> bool:
    """Whether the run learns a tag for each word."""
    return settings.task is not None and settings.task.kind == "tokens"


def columns_of(data: DataSettings, **others: str) -> TextColumns:
    """The columns of a run, but for others that are given."""
    label = data.label_column if data.label_column != "label" else ""
    return TextColumns(
        others.get("text_column") or data.text_column,
        others.get("label_column") or label,
        others.get("split_column") or data.split_column,
    )


def audited(splits: TextSplits, settings: RunSettings, loaded: LoadedModel) -> TextAudit:
    """All texts looked through and tokenised once."""
    findings = audit_texts(splits, bad_texts=settings.data.bad_images)
    parts = {"train": splits.train, "val": splits.val}
    samples = {
        name: text_samples(part, loaded.of_texts, splits.classes) for name, part in parts.items()
    }
    return TextAudit(splits, (*findings, *cut_texts(samples)), samples)


def held_out_set(settings: RunSettings, data: Path, **columns: str) -> TextSet:
    """Texts of other data, to judge the run on."""
    asked = columns_of(settings.data, **columns)
    return read_text_set(data, columns=asked, words=is_of_words(settings))
