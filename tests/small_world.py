"""Small pictures, a small network in a file of its own, and the command line called from a test."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torchvision  # noqa: F401 - its import sets TORCHINDUCTOR_CACHE_DIR; here, no test is blamed
from PIL import Image

from frostline.cli import main

# `features` is frozen in most tests; `middle` has all that must follow the mode when it trains.
NET = """
import os
import signal

from torch import nn

from frostline.preprocessing import Preprocessing

KILL_AT = int(os.environ.get("TEST_KILL_AT", "0"))
SIGNAL = getattr(signal, os.environ.get("TEST_SIGNAL", "SIGTERM"))


class Net(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        Net.calls += 1
        if Net.calls == KILL_AT:
            os.kill(os.getpid(), SIGNAL)
        return self.head(self.middle(self.features(x)))


def net():
    return Net(), Preprocessing(resize=16, crop=(16, 16))


def other():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), Preprocessing(resize=16, crop=(16, 16))
"""


@dataclass(frozen=True)
class Answer:
    """What a call of the command line gave."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The one message about what went wrong."""
        told = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(told) == 1, f"not one message:\n{self.err}"
        assert "Traceback" not in self.err
        assert "unexpected" not in told[0], told[0]
        return self.err[self.err.index("Error: ") :]


def call(*arguments: object, stdin: str = "") -> Answer:
    """`frostline ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    argv = ["frostline", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as error:
            status = error.code or 0
    assert isinstance(status, int)
    return Answer(status, out.getvalue(), err.getvalue())


def write_net(folder: Path) -> str:
    """The network's file; gives what to say for `--model`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small_net.py"
    file.write_text(NET)
    return f"{file}:net"


def write_picture(path: Path, level: int, *, seed: int = 0, side: int = 18) -> Path:
    """Noise of about that brightness."""
    draw = random.Random(f"{path.name} {level} {seed}")
    noise = bytes(min(255, max(0, level + draw.randint(-40, 40))) for _ in range(3 * side * side))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (side, side), noise).save(path)
    return path


def write_pictures(
    root: Path, *, train: int = 8, val: int = 4, names: Sequence[str] = ("dark", "light")
) -> Path:
    """A divided data set whose classes differ in brightness."""
    for part, count in (("train", train), ("val", val)):
        for number, name in enumerate(names):
            level = 50 + 150 * number // max(1, len(names) - 1)
            for index in range(count):
                write_picture(root / part / name / f"{index}.png", level, seed=hash_of(part))
    return root


def without_sum(text: str) -> str:
    """What a text file says, less its last line with the checksum, as who changes it deletes it."""
    return text.partition("\n# checksum ")[0]


def hash_of(text: str) -> int:
    return sum(text.encode())
