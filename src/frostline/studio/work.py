"""One command of the studio at a time, in a process of its own, and what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join
from threading import Lock
from typing import final

from frostline._leash import LEASH
from frostline.errors import ConfigError

_TAIL_BYTES = 100_000  # of what a command printed; a page shows no more
_STOP_SECONDS = 20  # a run writes where it is, so that it can go on
# Codes for a terminal: colours, and moves of the cursor.
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@final
@dataclass(frozen=True, slots=True)
class Said:
    """A command and what it has printed.

    Attributes:
        number: of the studio's commands, from 1.
        command: as one would type it.
        about: what it is for, for people.
        run: the run that it is about, if any.
        text: the end of what it printed.
        status: its exit status; None while it goes on.
        is_stopped: whether it was asked to stop.
    """

    number: int = 0
    command: str = ""
    about: str = ""
    run: str = ""
    text: str = ""
    status: int | None = None
    is_stopped: bool = False


@final
class Work:
    """What the studio has running, or had last; one at a time, since each takes all cores."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.scratch = tempfile.TemporaryDirectory(prefix="frostline-studio-")
        self._output = Path(self.scratch.name, "output.txt")
        self._last = Said()
        self._is_closed = False

    def start(self, words: Sequence[str], *, about: str, run: str = "") -> None:
        """Run `frostline` with these words, in the studio's folder.

        Raises:
            ConfigError: something is running already, or the studio is ending.
        """
        with self._lock:
            if self._is_closed:
                raise ConfigError("the studio is ending, so nothing is begun.")
            if self._process is not None and self._process.poll() is None:
                raise ConfigError(
                    f"{self._last.about} is still going, and two at once would only slow each "
                    "other down. Wait for its end, or stop it."
                )
            self._let_go()
            with self._output.open("wb") as output:
                # A session of its own: Ctrl-C in the studio's terminal is the studio's to pass on.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "frostline", *words],
                    cwd=self._folder,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", LEASH: "1"},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            command = join(["frostline", *words])
            self._last = Said(self._last.number + 1, command, about, run)

    def said(self) -> Said | None:
        """What is running or ran last; None before anything did."""
        with self._lock:
            if self._process is None:
                return None
            status = self._process.poll()  # before its output is read, so that none is missed
            return replace(self._last, status=status, text=_tail(self._output))

    def stop(self, number: int) -> None:
        """Stop that command, if it is running, as Ctrl-C does: a run can go on afterwards."""
        with self._lock:
            process = self._process
            if process is None or number != self._last.number or process.poll() is not None:
                return
            self._last = replace(self._last, is_stopped=True)
            self._let_go()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop what is running; nothing can be started after it."""
        with self._lock:
            self._is_closed = True
        self.stop(self._last.number)
        self._let_go()
        self.scratch.cleanup()

    def _let_go(self) -> None:
        """Close what the process reads, by which it ends; see `_leash`."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _tail(file: Path) -> str:
    """The end of what is being written, without a terminal's codes."""
    with file.open("rb") as output:
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _TAIL_BYTES))
        text = output.read().decode(errors="replace")
    return _CODES.sub("", text).replace("\r", "\n").strip("\n")
