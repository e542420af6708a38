"""All notes of a run folder, each on its own: what is missing or damaged is named, not raised."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, final

from pydantic import TypeAdapter

from frostline._files import json_checked, json_with_sum, write_text
from frostline.errors import ConfigError, one_line
from frostline.records.answers import Answers, read_answers
from frostline.records.epochs import PhaseRecord, Proven, Spent
from frostline.records.folder import RunFolder
from frostline.records.journal import RunPart, read_sessions
from frostline.records.predictions import Judged, read_judged
from frostline.tables import Table
from frostline.tasks import ClassMetrics

_Found = TypeVar("_Found")
# What a missing, cut or overwritten file makes json and the readers raise.
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError)


@final
@dataclass(frozen=True, slots=True)
class EpochLine:
    """A line of `metrics.jsonl`: metrics by name.

    Attributes:
        lrs: learning rates, highest first.
        spent: where the seconds went; None where it was not noted.
    """

    epoch: int
    phase: int
    lr: float
    train: Mapping[str, float]
    validation: Mapping[str, float]
    seconds: float
    best: bool
    lrs: tuple[float, ...]
    spent: Spent | None


@final
@dataclass(frozen=True, slots=True)
class DataNotes:
    """What `data.json` holds.

    Attributes:
        how: how the pictures were divided, for people.
        train, validation: pictures of each class.
        findings: level, code and message of each, worst first.
        targets: a hash of what each sample is labelled with; empty before 0.2.
    """

    how: str
    train: Mapping[str, int]
    validation: Mapping[str, int]
    findings: tuple[tuple[str, str, str], ...] = ()
    targets: str = ""


@final
@dataclass(frozen=True, slots=True)
class ResultNotes:
    """What `result.json` holds: metrics of the best epoch, and the proof at the run's end.

    Attributes:
        per_class, confusion: of a classifier; else empty.
        tables: what another task has to show beside its metrics.
        frozen: None for a run that has not ended.
    """

    epoch: int
    metrics: Mapping[str, float]
    samples: int
    per_class: tuple[ClassMetrics, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    frozen: Proven | None = None
    phases: tuple[PhaseRecord, ...] = ()
    tables: tuple[Table, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class RunRecords:
    """What is known of a run.

    Attributes:
        lacks: what could not be read, and why, for people.
        validated_on: content digest of each validation file, in the order of the predictions;
            empty where they are not known.
    """

    epochs: tuple[EpochLine, ...] = ()
    result: ResultNotes | None = None
    data: DataNotes | None = None
    judged: Judged | None = None
    answers: Answers | None = None
    sessions: tuple[RunPart, ...] = ()
    validated_on: tuple[str, ...] = ()
    delta_bytes: int | None = None
    lacks: tuple[str, ...] = ()

    @property
    def best(self) -> EpochLine | None:
        """The epoch whose weights are kept, as far as is known."""
        return next((line for line in reversed(self.epochs) if line.best), None)


_EPOCH = TypeAdapter(EpochLine)  # once: a run has many
_BESIDE_METRICS = {field.name for field in fields(ResultNotes)} - {"metrics"}


def read_records(folder: RunFolder) -> RunRecords:
    """Read whatever there is; never raises for what is not."""
    lacks: list[str] = []

    def tried(file: Path, read: Callable[[Path], _Found], what: str) -> _Found | None:
        try:
            return read(file)
        except (*_DAMAGES, ConfigError) as error:
            reason = one_line(error, first=True, named=False)
            state = f"is damaged ({reason})" if file.exists() else "is not there"
            lacks.append(f"{file.relative_to(folder.root)} {state}: {what}.")
            return None

    no_samples = (
        "nothing is known of single validation samples, so there is no calibration and there are "
        "no mistakes to show"
    )
    told = folder.answers.exists()  # of a task without classes
    no_end = "the run has not ended, or lost its metrics"
    no_times = "nothing is known of times beside the epochs"
    return RunRecords(
        epochs=tried(folder.metrics, read_epochs, "nothing is known of single epochs") or (),
        result=tried(folder.result, _read_result, no_end),
        data=tried(folder.data, read_data_notes, "nothing is known of the data's audit"),
        judged=None if told else tried(folder.predictions, read_judged, no_samples),
        answers=tried(folder.answers, read_answers, no_samples) if told else None,
        sessions=tried(folder.course, read_sessions, no_times) or (),
        validated_on=_validated_on(folder),
        delta_bytes=tried(folder.best, lambda f: f.stat().st_size, "there are no trained weights"),
        lacks=tuple(lacks),
    )


def read_epochs(path: Path) -> tuple[EpochLine, ...]:
    """The lines of `metrics.jsonl`; one that a kill cut short at the end is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_epoch(json.loads(line)))
        except ValueError:
            if number < len(lines):
                raise
    return tuple(found)


def write_data_notes(notes: DataNotes, path: Path) -> None:
    """Write `data.json`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, json_with_sum(asdict(notes)))


def read_data_notes(path: Path) -> DataNotes:
    """Read it back."""
    content = json_checked(path.read_text(encoding="utf-8"))
    return TypeAdapter(DataNotes).validate_python(content)


def _epoch(line: Mapping[str, Any]) -> EpochLine:
    def with_prefix(prefix: str) -> dict[str, float]:
        return {n.removeprefix(prefix): v for n, v in line.items() if n.startswith(prefix)}

    spent = {field.name: line[field.name] for field in fields(Spent) if field.name in line}
    read = {
        "train": with_prefix("train_"),
        "validation": with_prefix("val_"),
        "spent": spent or None,
    }
    # A phase alone, and a learning rate alone, are not written.
    return _EPOCH.validate_python({"phase": 1, "lrs": (line["lr"],), **line, **read})


def _read_result(path: Path) -> ResultNotes:
    content = json_checked(path.read_text(encoding="utf-8"))
    known = {name: content.pop(name) for name in _BESIDE_METRICS if name in content}
    # What a later version notes besides is no number, or a table.
    metrics = {name: value for name, value in content.items() if type(value) in (int, float)}
    found = TypeAdapter(ResultNotes).validate_python(
        {**known, "frozen": known["frozen"], "metrics": metrics}
    )
    if any(len(row) != len(found.per_class) for row in (found.confusion, *found.confusion)):
        raise ValueError("the confusion matrix has not a row and a column for each class")
    return found


def _validated_on(folder: RunFolder) -> tuple[str, ...]:
    try:
        return folder.read_validated_on()
    except ConfigError:
        return ()
