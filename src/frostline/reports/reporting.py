"""From a run's folder to its report: facts gathered, the page made and written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from frostline.config import RunSettings
from frostline.deltas import read_delta
from frostline.errors import BrokenPromise, ConfigError, DeltaError, DriftError, FrostlineError
from frostline.freezing import not_covered_text
from frostline.pages.facts import FrozenPart, Promise, ReportFacts, Shown, Trained
from frostline.pages.rendering import now_in_words, save_page
from frostline.pages.thumbnails import thumbnail
from frostline.records import Judged, RunFolder, RunRecords, read_records
from frostline.records.certainty import calibration
from frostline.records.spending import spending
from frostline.reports.repeating import repeat_command, repeat_notes, use_command, use_python
from frostline.units import format_bytes

if TYPE_CHECKING:
    from frostline.freezing import Proof

_PICTURES = 12
_MODULE_PARTS = 2  # of a tensor's name, by which frozen ones are counted


@final
@dataclass(frozen=True, slots=True)
class RunReport:
    """A report that was made.

    Attributes:
        page: HTML, one file that needs no other.
        facts: what it says.
    """

    page: str
    facts: ReportFacts

    @property
    def promise(self) -> Promise:
        """Whether what was to stay frozen did."""
        return self.facts.promise

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all.

        Raises:
            OutputError: as `save_page`.
        """
        save_page(self.page, path, force=force)

    def as_dict(self) -> dict[str, object]:
        """Its numbers as plain data for JSON."""
        records, promise = self.facts.records, self.promise
        spent = spending(records)
        best = records.best
        return {
            "run": self.facts.folder,
            "promise": {
                "state": promise.state,
                "words": promise.words,
                "checks": list(promise.checks),
                "names": list(promise.names),
            },
            "epochs": len(records.epochs),
            "best_epoch": best.epoch if best else None,
            **(best.validation if best else {}),
            "calibration_error": (
                calibration(records.judged).expected_error if records.judged else None
            ),
            "seconds": {**dict(spent.parts), "total": spent.total} if spent else None,
            "plain_seconds": spent.plain if spent else None,
            "delta_bytes": records.delta_bytes,
            "warnings": [list(finding) for finding in records.data.findings]
            if records.data
            else None,
            "repeat": self.facts.repeat,
            "lacks": list(records.lacks),
        }


def make_report(folder: RunFolder, settings: RunSettings, promise: Promise) -> RunReport:
    """The report of a run, from what its folder holds; what is missing is named on it."""
    from frostline.pages.report import render_report

    facts = gather(folder, settings, promise)
    return RunReport(render_report(facts), facts)


def gather(folder: RunFolder, settings: RunSettings, promise: Promise) -> ReportFacts:
    """All that a report says of a run."""
    records = read_fitting(folder, settings)
    below = _folder_of(settings.data.path)
    mistakes, doubts = _samples(records, settings.data.classes, below)
    root = folder.root.resolve()
    return ReportFacts(
        name=root.name,
        folder=str(root),
        made=now_in_words(),
        classes=settings.data.classes,
        settings=tuple(flat_settings(settings)),
        freezing=tuple(_freezing(settings)),
        promise=promise,
        records=records,
        frozen=_frozen(folder),
        trained=trained_tensors(folder),
        pictures_in=below if records.judged else "",
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
    if not classes:  # of a task that has none, of which no predictions are kept
        file = str(folder.predictions.relative_to(folder.root))
        lacks = tuple(line for line in records.lacks if not line.startswith(file))
        return replace(records, judged=None, lacks=lacks)
    judged, best = records.judged, records.best
    if judged is None:
        return records
    highest = max(int(judged.ranked.max()), int(judged.targets.max()))
    if highest < classes and (best is None or best.epoch == judged.epoch):
        return records
    why = (
        f"best/predictions.safetensors is of epoch {judged.epoch}, not of the best one: nothing is "
        "known of single validation samples."
        if highest < classes
        else "best/predictions.safetensors is of other classes than the run's, and is not used."
    )
    return replace(records, judged=None, lacks=(*records.lacks, why))


def _folder_of(data: str) -> str:
    """The folder in which the pictures of `data`, a folder or a table, are named."""
    if not data:
        return ""
    return str(Path(data) if Path(data).is_dir() else Path(data).parent)


def _samples(
    records: RunRecords, classes: Sequence[str], below: str
) -> tuple[tuple[Shown, ...], tuple[Shown, ...]]:
    """The most confident mistakes, and the least confident hits."""
    judged = records.judged
    if judged is None:
        return (), ()
    wrong = torch.nonzero(~judged.hits)[:, 0]
    right = torch.nonzero(judged.hits)[:, 0]
    by_wrong = judged.confidence[wrong].argsort(descending=True, stable=True)
    by_right = judged.confidence[right].argsort(stable=True)
    recorded = records.validated_on
    digests = recorded if len(recorded) == len(judged) else ()
    return (
        _shown(judged, wrong[by_wrong][:_PICTURES], digests, classes, below),
        _shown(judged, right[by_right][:_PICTURES], digests, classes, below),
    )


def _shown(
    judged: Judged, places: Tensor, digests: Sequence[str], classes: Sequence[str], below: str
) -> tuple[Shown, ...]:
    found = []
    for place in places.tolist():
        file = judged.names[place]
        picture, why_not = "", "what it looked like was not recorded"
        if digests:
            picture, why_not = thumbnail(Path(file), digests[place])
        found.append(
            Shown(
                file.removeprefix(f"{below}{os.sep}") if below else file,
                picture,
                why_not,
                classes[int(judged.targets[place])],
                classes[int(judged.predicted[place])],
                float(judged.confidence[place]),
                float(judged.target_chance[place]),
            )
        )
    return tuple(found)


def _frozen(folder: RunFolder) -> tuple[FrozenPart, ...]:
    try:
        names = folder.read_frozen().tensors
    except ConfigError:  # the promise says it
        return ()
    modules = Counter(".".join(name.split(".")[:-1][:_MODULE_PARTS]) or "itself" for name in names)
    return tuple(FrozenPart(module, count) for module, count in modules.items())


def trained_tensors(folder: RunFolder) -> tuple[Trained, ...]:
    try:
        delta = read_delta(folder.best)
    except DeltaError:  # the promise says it
        return ()
    return tuple(
        Trained(name, " x ".join(map(str, tensor.shape)) or "one number", tensor.nbytes)
        for name, tensor in delta.tensors.items()
    )


def _freezing(settings: RunSettings) -> list[str]:
    if settings.plan:
        return [
            f"Phase {number}, {phase.label(number)}: {_chosen(phase.freeze, phase.train)}; "
            f"{_norms(phase.norm)}."
            for number, phase in enumerate(settings.plan, start=1)
        ]
    asked = settings.freeze
    if settings.model.is_from_python:
        return ["As the model was frozen when it was handed over in Python."]
    if asked.freeze is None and asked.train is None:
        head = settings.model.head or "the head"
        return [f"Everything but the new head at {head}; {_norms(asked.norm)}."]
    return [f"Chosen by selector: {_chosen(asked.freeze, asked.train)}; {_norms(asked.norm)}."]


def _chosen(freeze: str | None, train: str | None) -> str:
    if freeze is not None:
        return f"frozen is {freeze}"
    return "frozen as before it" if train is None else f"trained is {train}, the rest is frozen"


def _norms(norm: str) -> str:
    return {
        "hold": "frozen norms hold their statistics",
        "adapt": "statistics of frozen norms follow the data",
    }[norm]


def flat_settings(settings: RunSettings) -> list[tuple[str, str]]:
    """Each setting as a word and a value."""
    content = settings.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    content["data"]["classes"] = f"{len(settings.data.classes)} classes"
    flat = []
    for section, values in content.items():
        if isinstance(values, dict):
            flat += [(f"{section}.{key}", _shown_value(value)) for key, value in values.items()]
        else:
            flat.append((section, _shown_value(values)))
    return [(word, value) for word, value in flat if value]


def _shown_value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
