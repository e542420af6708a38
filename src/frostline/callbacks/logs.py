"""Metrics of each epoch for machines: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import struct
import time
from functools import cache, reduce
from os import getpid
from pathlib import Path
from socket import gethostname
from typing import Any, final

from frostline._files import append_line, output_errors, write_text
from frostline.engine import Hook, Training

_BESIDE = frozenset({"lr", "seconds", "samples_per_second"})  # curves that are no metrics


@final
class MetricsLog(Hook):
    """Appends a JSON object for each epoch; on a resume, drops lines past the position."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, training: Training) -> None:
        lines = (json.dumps(record.line()) + "\n" for record in training.history)
        write_text(self._path, "".join(lines))

    def on_epoch(self, training: Training) -> None:
        append_line(self._path, json.dumps(training.history[-1].line()))


@final
class TensorBoardLog(Hook):
    """Writes curves for TensorBoard, one point for each epoch; nothing where it is not installed.

    The events are written here and not by torch's `SummaryWriter`, whose thread prints a traceback
    of its own when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_installed = False
        self._file = (
            folder / f"events.out.tfevents.{time.time_ns():019d}.{gethostname()}.{getpid()}"
        )

    def on_start(self, training: Training) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]  # it has no stubs
                Event,
                SessionLog,
            )
        except ImportError:
            return
        self._is_installed = True
        with output_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        version, next_step = "brain.Event:2", training.position.epochs + 1
        starts = SessionLog(status=SessionLog.START)  # points from here on are written anew
        self._append(
            Event(wall_time=time.time(), file_version=version),
            Event(wall_time=time.time(), step=next_step, session_log=starts),
        )

    def on_epoch(self, training: Training) -> None:
        if not self._is_installed:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        record = training.history[-1]
        points = [
            Summary.Value(tag=name.replace("_", "/", 1), simple_value=value)
            for name, value in record.line().items()
            if name in _BESIDE or name.startswith(("train_", "val_"))
        ]
        summary = Summary(value=points)
        self._append(Event(wall_time=time.time(), step=record.epoch, summary=summary))

    def _append(self, *events: Any) -> None:
        with output_errors(self._file), self._file.open("ab") as file:
            file.writelines(_record(event.SerializeToString()) for event in events)


def _record(content: bytes) -> bytes:
    """A record of TensorBoard's files: its length, and itself, each with its checksum behind it.

    tensorboard's own writer imports what reads its files from clouds, which takes a tenth of a
    second.
    """
    size = struct.pack("<Q", len(content))
    return b"".join((size, _sum_of(size), content, _sum_of(content)))


def _sum_of(content: bytes) -> bytes:
    """CRC-32C, turned and moved as the format has it, so that sums of sums are none."""
    state, table = 0xFFFFFFFF, _crc_table()
    for byte in content:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    crc = state ^ 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _crc_table() -> tuple[int, ...]:
    return tuple(reduce(_shifted, range(8), byte) for byte in range(256))


def _shifted(state: int, _bit: int) -> int:
    return state >> 1 ^ (0x82F63B78 if state & 1 else 0)
