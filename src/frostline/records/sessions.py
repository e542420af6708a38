"""What happened beside the epochs: `course.json`, an entry for each time that a run was going.

A run that is resumed adds a session. Seconds are of wall clock; a killed session has those until
it last wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from frostline._files import json_checked, json_with_sum, write_text

BY_MODEL = "model"  # in place of a form: the model computes its frozen part in each step


@final
@dataclass(frozen=True, slots=True)
class FedNote:
    """How a phase got its batches.

    Attributes:
        phase: counted from 1.
        form: in which the frozen part was computed; `model` where the model does it in each step.
        seconds: until the first batch could be asked for, all together.
        decode_seconds, prefix_seconds: of these, loading samples and computing the frozen part.
        computed: rows of features that were computed; the others were in the store.
        nbytes: of all features.
        plain_seconds_per_sample: that the frozen part takes in a plain loop; 0 if not known.
        stored_samples: whose features are stored, of training and validation together.
    """

    phase: int
    form: str
    seconds: float
    decode_seconds: float
    prefix_seconds: float
    computed: int
    nbytes: int
    plain_seconds_per_sample: float
    stored_samples: int


@final
@dataclass(frozen=True, slots=True)
class Session:
    """One time that a run was going.

    Attributes:
        began: date and time, ISO 8601 with zone.
        position: where it began: `0`, or the mark of what was resumed.
        seconds: that it took.
        versions: of Frostline, torch and Python.
        device: where it ran, for people.
        notices: lines told to people.
        fed: of each phase that was begun in it.
    """

    began: str
    position: str
    seconds: float
    versions: str
    device: str
    notices: tuple[str, ...] = ()
    fed: tuple[FedNote, ...] = ()


def write_sessions(sessions: Sequence[Session], path: Path) -> None:
    """Write them, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json_with_sum({"sessions": [asdict(session) for session in sessions]}))


def read_sessions(path: Path) -> tuple[Session, ...]:
    """Read them back.

    Raises:
        OSError, ValueError, KeyError, TypeError: the file is missing or damaged.
    """
    return tuple(map(_session, json_checked(path.read_text(encoding="utf-8"))["sessions"]))


def _session(content: dict[str, Any]) -> Session:
    known = {field.name: content[field.name] for field in fields(Session)}
    known["notices"] = tuple(map(str, known["notices"]))
    known["fed"] = tuple(
        FedNote(**{f.name: note[f.name] for f in fields(FedNote)}) for note in known["fed"]
    )
    return Session(**known)
