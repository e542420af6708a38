"""What lies in a folder: pictures, folders of them, tables, runs; as plain data for a page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline.config import DataSettings, ModelSettings, RunSettings
from frostline.data import IMAGE_SUFFIXES, Sample, Splits, likely_task
from frostline.errors import ConfigError, DataError, FrostlineError, OutputError
from frostline.records import RunFolder, RunRecords, read_records
from frostline.runs import pictures
from frostline.tasks import TaskSettings, task_from

_ENTRIES = 500  # of a folder that are listed
_SHOWN = 12  # pictures
_TABLES = (".csv", ".tsv")
RUNS = "runs"
# Of a run; nothing that a command could take for an option, or a path for another folder.
_NAME = re.compile(r"[^\s/\\.\x00-\x1f-][^/\\\x00-\x1f]{0,99}")


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A folder as a page shows it.

    Attributes:
        above: the folder it lies in; None at the top.
        folders, tables: names in it, sorted.
        pictures: how many lie directly in it.
        left_out: how many names more there are than are listed.
    """

    path: Path
    above: Path | None
    folders: tuple[str, ...]
    tables: tuple[str, ...]
    pictures: int
    left_out: int = 0


@final
@dataclass(frozen=True, slots=True)
class FoundData:
    """Data that can be trained on, as `frostline train` would divide them.

    Attributes:
        how: how they were divided, for people.
        classes: names, or of another task what it learns.
        shown: a few of the pictures, from all over the data, each with its class.
    """

    path: Path
    train: int
    val: int
    how: str
    classes: tuple[str, ...]
    shown: tuple[tuple[Path, str], ...]


@final
@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run below the studio's folder.

    Attributes:
        name: of its folder below `runs`.
        state: going, done or stopped.
        settings: None where they cannot be read; `problem` says why.
    """

    name: str
    folder: RunFolder
    state: str
    records: RunRecords
    settings: RunSettings | None
    problem: str = ""


def look_into(path: Path) -> Place:
    """What lies in a folder; hidden names are left out.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    path = path.expanduser().resolve()
    try:
        with os.scandir(path) as entries:
            names = sorted(entries, key=lambda entry: entry.name.casefold())
    except OSError as error:
        raise DataError(
            f"cannot look into {path}: {error.strerror}. Choose another folder."
        ) from error
    shown = [entry for entry in names if not entry.name.startswith(".")]
    folders = [entry.name for entry in shown if entry.is_dir()]
    tables = [entry.name for entry in shown if _suffix(entry.name) in _TABLES]
    pictures = sum(_suffix(entry.name) in IMAGE_SUFFIXES for entry in shown)
    above = path.parent if path.parent != path else None
    more = max(0, len(folders) - _ENTRIES) + max(0, len(tables) - _ENTRIES)
    return Place(path, above, tuple(folders[:_ENTRIES]), tuple(tables[:_ENTRIES]), pictures, more)


def read_data(path: Path) -> FoundData:
    """The data at a path, divided as `frostline train` would divide them.

    Raises:
        DataError, ConfigError: they cannot be trained on as they are.
    """
    kind, _ = likely_task(path)
    task = None if kind == "classification" else task_from(TaskSettings(kind=kind)).settings()
    settings = RunSettings(  # whatever the model: it is the data that are read
        model=ModelSettings(name="resnet18"), data=DataSettings(path=str(path)), task=task
    )
    splits = pictures.splits_of(settings)
    samples = splits.train.samples
    step = max(1, len(samples) // _SHOWN)
    shown = tuple((one.path, _said(one, splits)) for one in samples[::step][:_SHOWN])
    return FoundData(
        path, len(splits.train), len(splits.val), splits.how, tuple(splits.names), shown
    )


def runs_below(folder: Path) -> list[KnownRun]:
    """The runs in `runs`, the latest first."""
    places = [
        place
        for place in _folders(folder / RUNS)
        if _NAME.fullmatch(place.name) and RunFolder(place).settings.is_file()
    ]
    places.sort(key=lambda place: RunFolder(place).settings.stat().st_mtime, reverse=True)
    return [known_run(folder, place.name) for place in places]


def known_run(folder: Path, name: str) -> KnownRun:
    """The run of that name.

    Raises:
        ConfigError: there is none.
    """
    check_name(name)
    files = RunFolder(folder / RUNS / name)
    files.check_is_run()
    records, state = read_records(files), "stopped"
    if _is_going(files):
        state = "going"
    elif records.result is not None and records.result.frozen is not None:
        state = "done"
    try:
        return KnownRun(name, files, state, records, RunSettings.read(files.settings))
    except FrostlineError as error:
        return KnownRun(name, files, state, records, None, str(error))


def check_name(name: str) -> None:
    """Refuse what is no name of a folder in `runs`.

    Raises:
        ConfigError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a run. Use letters, digits, - and _, at most 100."
        )


def _is_going(files: RunFolder) -> bool:
    try:
        files.check_idle()
    except OutputError:
        return True
    return False


def _folders(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (place for place in path.iterdir() if place.is_dir())


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _said(sample: Sample, splits: Splits) -> str:
    """The class of a picture; what else it may be labelled with is not shown."""
    return splits.classes[sample.label] if sample.target is None else ""
