"""What happens beside the epochs: `course.json`, an entry for each time that a run was going.

A run that is resumed adds a part. Seconds are of wall clock; a killed part has those until it last
wrote.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import final

import torch
from pydantic import TypeAdapter

from frostline._files import json_checked, json_with_sum, write_text
from frostline._version import __version__
from frostline.errors import OutputError

BY_MODEL = "model"  # in place of a form: the model computes its frozen part in each step
# What a cut or overwritten file makes json and the reading raise.
_DAMAGES = (OSError, ValueError, KeyError, TypeError)


@final
@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """How a phase got its batches.

    Attributes:
        phase: counted from 1.
        form: in which the frozen part is computed; `model` where the model does it in each step.
        seconds: until the first batch could be asked for, all together.
        decode_seconds, prefix_seconds: of these, loading samples and computing the frozen part.
        computed: rows of features that were computed; the others were in the store.
        nbytes: of all features.
        plain_seconds_per_sample: that the frozen part takes in a plain loop, for the samples
            whose features are stored; 0 if not known.
        stored_samples: whose features are stored, of training and validation together.
    """

    phase: int = 1
    form: str = BY_MODEL
    seconds: float = 0.0
    decode_seconds: float = 0.0
    prefix_seconds: float = 0.0
    computed: int = 0
    nbytes: int = 0
    plain_seconds_per_sample: float = 0.0
    stored_samples: int = 0


@final
@dataclass(frozen=True, slots=True)
class RunPart:
    """One time that a run was going.

    Attributes:
        began: date and time, ISO 8601 with zone.
        position: where it began: `0`, or the mark of what was resumed.
        seconds: that it took.
        versions: of Frostline, torch and Python.
        device: where it ran, for people.
        notices: lines for people.
        fed: the pipeline of each phase that was begun in it.
    """

    began: str
    position: str
    seconds: float
    versions: str
    device: str
    notices: tuple[str, ...] = ()
    fed: tuple[PipelineFacts, ...] = ()


@final
class Journal:
    """Writes down what people were shown and how long things took.

    Where it cannot be written the run goes on: its report will know less.

    Args:
        file: `course.json` of the run; None keeps nothing.
        device: where the run goes.
    """

    def __init__(self, file: Path | None, device: torch.device) -> None:
        self._file = file
        self._began = time.perf_counter()
        self._earlier: tuple[RunPart, ...] | None = None  # until the run begins
        self._part = RunPart(
            began=datetime.now().astimezone().isoformat(timespec="seconds"),
            position="0",
            seconds=0.0,
            versions=(
                f"Frostline {__version__}, torch {torch.__version__}, "
                f"Python {platform.python_version()}"
            ),
            device=_device_words(device),
        )

    def start(self, position: str) -> None:
        """The run begins, or goes on from that position."""
        self._earlier = ()
        self._part = replace(self._part, position=position)
        if self._file is not None and position != "0":
            with suppress(*_DAMAGES):
                self._earlier = read_sessions(self._file)

    def notice(self, text: str) -> None:
        """People were shown this line."""
        self._part = replace(self._part, notices=(*self._part.notices, text))

    def pipeline(self, facts: PipelineFacts) -> None:
        """A phase has its batches."""
        self._part = replace(self._part, fed=(*self._part.fed, facts))
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        if self._file is None or self._earlier is None:
            return
        self._part = replace(self._part, seconds=time.perf_counter() - self._began)
        with suppress(OutputError):
            write_sessions((*self._earlier, self._part), self._file)


def write_sessions(parts: Sequence[RunPart], path: Path) -> None:
    """Write them, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json_with_sum({"sessions": [asdict(part) for part in parts]}))


def read_sessions(path: Path) -> tuple[RunPart, ...]:
    """Read them back.

    Raises:
        OSError, ValueError, KeyError, TypeError: the file is missing or damaged.
    """
    content = json_checked(path.read_text(encoding="utf-8"))["sessions"]
    return TypeAdapter(tuple[RunPart, ...]).validate_python(content)


def _device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads, {platform.machine()}"
