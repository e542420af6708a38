"""Notes what happens beside the epochs, for the run's report: `course.json`."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import final

import torch

from frostline._version import __version__
from frostline.engine import Hook, Training
from frostline.errors import OutputError
from frostline.folder import RunFolder
from frostline.records import FedNote, Session, read_sessions, write_sessions

# What a cut or overwritten file makes json and the reading raise.
_DAMAGES = (OSError, ValueError, KeyError, TypeError)


@final
class Journal(Hook):
    """Writes down what was told and how long things took, at the ends of phases and of the run.

    Where it cannot be written the run goes on: its report will know less.

    Args:
        folder: of the run; None keeps nothing.
        device: where the run goes.
    """

    def __init__(self, folder: RunFolder | None, device: torch.device) -> None:
        self._folder = folder
        self._began = time.perf_counter()
        self._earlier: tuple[Session, ...] = ()
        self._starts = False
        self._session = Session(
            began=datetime.now().astimezone().isoformat(timespec="seconds"),
            position="0",
            seconds=0.0,
            versions=(
                f"Frostline {__version__}, torch {torch.__version__}, "
                f"Python {platform.python_version()}"
            ),
            device=_device_words(device),
        )

    def on_start(self, training: Training) -> None:
        """After the saver, which puts the position to where a resumed run goes on."""
        self._starts = True
        self._session = replace(self._session, position=training.position.mark)
        if self._folder is not None and self._session.position != "0":
            with suppress(*_DAMAGES):
                self._earlier = read_sessions(self._folder.course)

    def on_notice(self, text: str, /) -> None:
        self._session = replace(self._session, notices=(*self._session.notices, text))

    def note_feed(self, note: FedNote) -> None:
        """A phase has its batches."""
        self._session = replace(self._session, fed=(*self._session.fed, note))
        self.write()

    def on_phase(self, training: Training) -> None:  # noqa: ARG002 - the hook's signature
        self.write()

    def on_end(self) -> None:
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        if self._folder is None or not self._starts:
            return
        self._session = replace(self._session, seconds=time.perf_counter() - self._began)
        with suppress(OutputError):
            write_sessions((*self._earlier, self._session), self._folder.course)


def _device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads, {platform.machine()}"
