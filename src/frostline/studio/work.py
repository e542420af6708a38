"""One command of the studio at a time, in a process of its own, and what it prints."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from threading import Lock
from typing import final

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
        command: as one would type it.
        about: what it is for, for people.
        run: the run that it is about, if any.
        text: the end of what it printed.
        status: its exit status; None while it goes on.
    """

    command: str
    about: str
    run: str
    text: str
    status: int | None


@final
class Work:
    """What the studio has running, or had last; one at a time, since each takes all cores."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="frostline-studio-")
        self._output = Path(self._scratch.name, "output.txt")
        self._words: tuple[str, ...] = ()
        self._about = self._run = ""

    def start(self, words: Sequence[str], *, about: str, run: str = "") -> None:
        """Run `frostline` with these words, in the studio's folder.

        Raises:
            ConfigError: something is running already.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise ConfigError(
                    f"{self._about} is still going, and two at once would only slow each other "
                    "down. Wait for its end, or stop it."
                )
            self._words, self._about, self._run = tuple(words), about, run
            with self._output.open("wb") as output:
                # A session of its own: Ctrl-C in the studio's terminal is the studio's to pass on.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "frostline", *words],
                    cwd=self._folder,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def said(self) -> Said | None:
        """What is running or ran last; None before anything did."""
        with self._lock:
            if self._process is None:
                return None
            status = self._process.poll()  # before its output is read, so that none is missed
            command = join(["frostline", *self._words])
            return Said(command, self._about, self._run, _tail(self._output), status)

    def stop(self) -> None:
        """Stop what is running as Ctrl-C does: a run keeps what it trained, and can go on."""
        with self._lock:
            process = self._process
        if process is None or process.poll() is not None:
            return
        # Windows sends no interrupt to one process; what a run keeps there is what a kill leaves.
        process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop what is running; nothing can be started after it."""
        self.stop()
        self._scratch.cleanup()


def _tail(file: Path) -> str:
    """The end of what is being written, without a terminal's codes."""
    with file.open("rb") as output:
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _TAIL_BYTES))
        text = output.read().decode(errors="replace")
    return _CODES.sub("", text).replace("\r", "\n").strip("\n")
