"""What lies in a folder: pictures, folders of them, tables, runs; as plain data for a page."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, final

from frostline._files import is_text
from frostline.config import DataSettings, ModelSettings, RunSettings
from frostline.data import IMAGE_SUFFIXES, Sample, Splits, at_a_glance, likely_task
from frostline.errors import ConfigError, DataError, FrostlineError, OutputError
from frostline.records import RunFolder, RunRecords, read_records
from frostline.runs import pictures
from frostline.tasks import TaskSettings, task_from

_ENTRIES = 500  # of a folder that are listed
_SHOWN = 12  # pictures
_TABLES = (".csv", ".tsv")
RUNS = "runs"
_NEW_NAME = re.compile(r"\w(?:[\w .+-]{0,78}[\w+-])?")
_LOOKING = Lock()  # whoever looks whether a run is going holds its lock for a moment

State = Literal["going", "done", "stopped"]


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
        kind: of what is learnt.
        how: how they were divided, for people.
        names: of the classes, or of what else is learnt.
        odd: what to know before training, for people.
        shown: a few of the pictures, from all over the data, each with its class.
    """

    path: Path
    kind: str
    train: int
    val: int
    how: str
    names: tuple[str, ...]
    odd: tuple[str, ...]
    shown: tuple[tuple[Path, str], ...]


@final
@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run below the studio's folder.

    Attributes:
        name: of its folder in `runs`.
        settings: None where they cannot be read; `problem` says why.
    """

    name: str
    folder: RunFolder
    state: State
    records: RunRecords
    settings: RunSettings | None
    problem: str = ""


def named_path(text: str, base: Path) -> Path:
    """The path that a person wrote, from `base` where it is not a whole one.

    Raises:
        DataError: it cannot be one.
    """
    try:
        path = (base / Path(text.strip()).expanduser()).resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{text[:100]!r} cannot be a path: {reason}. Write another.") from error
    return path


def look_into(path: Path) -> Place:
    """What lies in a folder; hidden names are left out, and what no page can name.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            names = sorted(entries, key=lambda entry: entry.name.casefold())
    except OSError as error:
        raise DataError(
            f"cannot look into {path}: {error.strerror}. Choose another folder."
        ) from error
    seen = [entry for entry in names if not entry.name.startswith(".")]
    shown = [entry for entry in seen if is_text(entry.name)]
    folders = [entry.name for entry in shown if entry.is_dir()]
    tables = [entry.name for entry in shown if _suffix(entry.name) in _TABLES]
    more = sum(max(0, len(named) - _ENTRIES) for named in (folders, tables))
    return Place(
        path,
        path.parent if path.parent != path else None,
        tuple(folders[:_ENTRIES]),
        tuple(tables[:_ENTRIES]),
        sum(_suffix(entry.name) in IMAGE_SUFFIXES for entry in shown),
        more + len(seen) - len(shown),
    )


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
    odd, samples = at_a_glance(splits), splits.train.samples
    few = min(_SHOWN, len(samples))
    shown = (samples[place * len(samples) // few] for place in range(few))
    return FoundData(
        path,
        kind,
        len(splits.train),
        len(splits.val),
        splits.how,
        tuple(splits.names),
        odd,
        tuple((one.path, _said(one, splits)) for one in shown),
    )


def runs_below(folder: Path) -> list[KnownRun]:
    """The runs in `runs`, the latest first."""
    found = []
    for name in _names_in(folder / RUNS):
        try:
            begun = RunFolder(folder / RUNS / name).settings.stat().st_mtime
            found.append((begun, known_run(folder, name)))
        except (OSError, ConfigError):  # it is no run, or was taken away meanwhile
            continue
    return [run for _, run in sorted(found, key=lambda one: one[0], reverse=True)]


def known_run(folder: Path, name: str) -> KnownRun:
    """The run of that name.

    Raises:
        ConfigError: there is none.
    """
    if Path(name).name != name or name in ("", "..") or not is_text(name) or len(name) > 200:
        raise ConfigError(f"{name!r} is no name of a run. Choose one on the first page.")
    files = RunFolder(folder / RUNS / name)
    files.check_is_run()
    records = read_records(files)
    state: State = "stopped"
    if _is_going(files):
        state = "going"
    elif records.result is not None and records.result.frozen is not None:
        state = "done"
    try:
        return KnownRun(name, files, state, records, RunSettings.read(files.settings))
    except FrostlineError as error:
        return KnownRun(name, files, state, records, None, str(error))


def check_new_name(folder: Path, name: str) -> None:
    """Refuse a name that a new run cannot have.

    Raises:
        ConfigError: it is no name, or another run has it.
    """
    if not _NEW_NAME.fullmatch(name) or len(name.encode()) > 200:
        raise ConfigError(
            f"{name[:100]!r} cannot be the name of a run. Use letters, digits, spaces, and - _ + . "
            "between them, at most 80."
        )
    if (folder / RUNS / name).exists():
        raise ConfigError(
            f"there is a run {name!r} already, and nothing was changed. Choose another name, or "
            "leave it empty."
        )


def _is_going(files: RunFolder) -> bool:
    with _LOOKING:
        try:
            files.check_idle()
        except OutputError:
            return True
    return False


def _names_in(path: Path) -> list[str]:
    try:
        return [place.name for place in path.iterdir() if is_text(place.name)]
    except OSError:
        return []


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _said(sample: Sample, splits: Splits) -> str:
    """The class of a picture; what else it may be labelled with is not shown."""
    return splits.classes[sample.label] if sample.target is None else ""
