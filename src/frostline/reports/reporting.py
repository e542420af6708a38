"""From a run's folder to its report: all that it tells, gathered."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from torch import Tensor

from frostline._files import file_digest
from frostline.config import DataSettings, RunSettings
from frostline.data import Levels, TextColumns, read_text_parts, text_id
from frostline.deltas import read_delta
from frostline.errors import (
    BrokenPromise,
    ConfigError,
    DeltaError,
    DriftError,
    FrostlineError,
)
from frostline.freezing import Proof, not_covered_text
from frostline.pages.rendering import now_in_words
from frostline.pages.thumbnails import thumbnail
from frostline.records import RunFolder, RunRecords, in_words, read_records
from frostline.reports.repeating import repeat_command, repeat_notes, use_command, use_python
from frostline.reports.report import Promise, RunReport, Shown
from frostline.units import format_bytes

_PICTURES = 12
_LETTERS = 400  # of a text
_NORMS = {
    "hold": "frozen norms hold their statistics",
    "adapt": "statistics of frozen norms follow the data",
}
_MODULE_PARTS = 2  # of a tensor's name, by which frozen ones are counted


def make_report(folder: RunFolder, settings: RunSettings, promise: Promise) -> RunReport:
    """The report of a run, from what its folder holds; what is missing is named on it."""
    records = read_fitting(folder, settings)
    below = folder_of(settings.data.path)
    mistakes, doubts = shown_samples(records, settings.data, settings.data.path)
    root = folder.root.resolve()
    return RunReport(
        name=root.name,
        folder=str(root),
        made=now_in_words(),
        classes=settings.data.classes,
        settings=flat_settings(settings),
        freezing=tuple(_freezing(settings)),
        promise=promise,
        records=records,
        frozen=_frozen(folder),
        trained=read_trained(folder),
        pictures_in=below if records.judged or records.answers else "",
        mistakes=mistakes,
        doubts=doubts,
        repeat=repeat_command(settings, folder),
        repeat_notes=repeat_notes(settings, folder),
        use_shell=use_command(settings, folder),
        use_python=use_python(settings, folder),
    )


def promise_of(verify: Callable[[], tuple[str, Sequence[str]]]) -> Promise:
    """What a verification found, as data: it may hold, be broken, or not be known.

    Args:
        verify: gives words and checks, or raises as `FinishedRun.verify`.
    """
    try:
        words, checks = verify()
    except BrokenPromise as error:
        names = tuple(map(str, error.drifts)) if isinstance(error, DriftError) else ()
        return Promise("broken", str(error), (), names)
    except FrostlineError as error:
        return Promise("unproven", str(error))
    return Promise("proven", words, tuple(checks))


def promise_at_end(proof: Proof) -> Promise:
    """What was proven in memory when the run ended."""
    if not proof.tensors:
        words = "Nothing stayed frozen in all phases; what each froze did not move in it."
        return Promise("proven", words)
    size = format_bytes(proof.nbytes)
    return Promise(
        "proven",
        f"{proof.tensors} frozen tensors, {size}: every bit is what it was before training, "
        f"{proof.fingerprint}{not_covered_text(proof.not_covered)}.",
        (
            "compared in memory when the run ended",
            "`frostline report` and `frostline verify` prove it again from the files alone",
        ),
    )


def read_fitting(folder: RunFolder, settings: RunSettings) -> RunRecords:
    """A run's records, without predictions of other classes or of another than the best epoch."""
    records, classes = read_records(folder), len(settings.data.classes)
    judged, best, file = records.judged, records.best, "best/predictions.safetensors"
    if not classes:
        own = settings.task is None  # of a task of one's own no predictions are kept
        lacks = tuple(line for line in records.lacks if not (own and line.startswith(file)))
        return replace(records, judged=None, lacks=lacks)
    if judged is None:
        return records
    if max(int(judged.ranked.max()), int(judged.targets.max())) >= classes:
        why = f"{file} is of other classes than the run's, and is not used."
    elif best is not None and best.epoch != judged.epoch:
        why = (
            f"{file} is of epoch {judged.epoch}, not of the best one: nothing is known of single "
            "validation samples."
        )
    else:
        return records
    return replace(records, judged=None, lacks=(*records.lacks, why))


def folder_of(data: str) -> str:
    """The folder in which the pictures of `data`, a folder or a table, are named."""
    if not data:
        return ""
    return str(Path(data) if Path(data).is_dir() else Path(data).parent)


def shown_samples(
    records: RunRecords, data: DataSettings, source: str, *, most: int = _PICTURES
) -> tuple[tuple[Shown, ...], tuple[Shown, ...]]:
    """The `most` most confident mistakes, and the least confident hits.

    Of a task without classes the worst answers, and none that are right.

    Args:
        source: the folder or the table of the samples.
    """
    judged, answers = records.judged, records.answers
    count = len(judged or answers or ())
    digests = records.validated_on if len(records.validated_on) == count else ()
    look = _Look(data, folder_of(source), digests, _texts(data, source) if count else {})
    if judged is None:
        worst = answers.every[:most] if answers else ()
        return tuple(
            look.at(one.name, one.place, in_words(one.truth), in_words(one.said)) for one in worst
        ), ()
    order, wrong = judged.worst_first, int((~judged.hits).sum())

    def shown(place: int) -> Shown:
        target, predicted = (
            data.classes[int(of[place])] for of in (judged.targets, judged.predicted)
        )
        chances = float(judged.confidence[place]), float(judged.target_chance[place])
        return look.at(judged.names[place], place, target, predicted, *chances)

    mistakes, doubts = (
        tuple(map(shown, places.tolist()))
        for places in (order[:wrong][:most], order[wrong:][:_PICTURES])
    )
    return mistakes, doubts


@final
@dataclass(frozen=True, slots=True)
class _Look:
    """How single samples are shown.

    Attributes:
        below: the folder that names of files are told from.
        digests: of the samples' content; empty where it was not recorded.
        texts: by the digest of their content.
    """

    data: DataSettings
    below: str
    digests: Sequence[str]
    texts: Mapping[str, str]

    def at(
        self,
        name: str,
        place: int,
        target: str,
        predicted: str,
        chance: float | None = None,
        target_chance: float = 0.0,
    ) -> Shown:
        """The sample of that name and place, and what is told of it."""
        picture, why_not, text = "", "what it looked like was not recorded", ""
        if self.digests and self.data.is_text:
            text = self.texts.get(self.digests[place], "")
            why_not = "its table is not there any more, or is another"
        elif self.digests:
            picture, why_not = _seen_by_run(Path(name), self.digests[place], self.data.levels)
        file = name.removeprefix(f"{self.below}{os.sep}") if self.below else name
        return Shown(file, picture, why_not, target, predicted, chance, target_chance, text)


def _texts(data: DataSettings, source: str) -> dict[str, str]:
    """The texts of a run's table, by the digest of their content; none where it is gone."""
    if not data.is_text:
        return {}
    columns = TextColumns(data.text_column, data.label_column, data.split_column)
    found: dict[str, str] = {}
    with suppress(FrostlineError, OSError):
        for part in read_text_parts(source, columns=columns):
            for text in part.texts:
                whole = text if isinstance(text, str) else " | ".join(text)
                shown = whole if len(whole) <= _LETTERS else f"{whole[:_LETTERS]}..."
                found[text_id(text).hex()] = shown
    return found


def _seen_by_run(path: Path, digest: str, levels: Levels | None) -> tuple[str, str]:
    """A data URI of the picture at `path`, or why there is none; one of the two is empty.

    A file of another content than `digest`, which the run saw, is not shown.
    """
    try:
        if file_digest(path) != digest:
            return "", "the file is not the one that the run saw"
    except FileNotFoundError:
        return "", "the file is not there any more"
    except OSError:
        return "", "the file cannot be read"
    return thumbnail(path, levels)


def _frozen(folder: RunFolder) -> Mapping[str, int]:
    """How many tensors stayed frozen throughout, by module."""
    try:
        names = folder.read_frozen().tensors
    except ConfigError:  # the promise says it
        return {}
    return Counter(".".join(name.split(".")[:-1][:_MODULE_PARTS]) or "itself" for name in names)


def read_trained(folder: RunFolder) -> Mapping[str, Tensor]:
    """What the best epoch's delta holds; nothing where it cannot be read."""
    try:
        return read_delta(folder.best).tensors
    except DeltaError:  # the promise says it
        return {}


def _freezing(settings: RunSettings) -> list[str]:
    if settings.plan:
        words = [
            f"Phase {number}, {phase.label(number)}: {_chosen(phase.freeze, phase.train)}; "
            f"{_NORMS[phase.norm]}."
            for number, phase in enumerate(settings.plan, start=1)
        ]
        first = settings.plan[0]
        if not first.names_part:
            (as_asked,) = _freezing(settings.model_copy(update={"plan": ()}))
            words[0] = f"Phase 1, {first.label(1)}: {as_asked[0].lower()}{as_asked[1:]}"
        return words
    asked = settings.freeze
    if settings.model.is_from_python:
        return ["As the model was frozen when it was handed over in Python."]
    if asked.freeze is None and asked.train is None:
        head = settings.model.head or "the head"
        return [f"Everything but the new head at {head}; {_NORMS[asked.norm]}."]
    return [f"Chosen by selector: {_chosen(asked.freeze, asked.train)}; {_NORMS[asked.norm]}."]


def _chosen(freeze: str | None, train: str | None) -> str:
    if freeze is not None:
        return f"frozen is {freeze}"
    return "frozen as before it" if train is None else f"trained is {train}, the rest is frozen"


def flat_settings(settings: RunSettings) -> dict[str, str]:
    """Each setting by its word, but for empty ones."""
    content = settings.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    content["data"]["classes"] = f"{len(settings.data.classes)} classes"
    flat: dict[str, object] = {}
    for section, values in content.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    shown = {
        word: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for word, value in flat.items()
    }
    return {word: value for word, value in shown.items() if value}
