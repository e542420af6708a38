"""Processes that a launcher might have started, forked of one that has imported torch already."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.export._trace",
        "torchvision.models",
        "frostline",
        "frostline.runs",
        "pytest",
    ]
)
_AT_MOST_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        value: what its work gave, unless it raised or was killed.
        error: its traceback; empty if it raised nothing.
        status: its exit status, or minus the signal that killed it.
    """

    value: Any
    error: str
    status: int


def on_ranks(
    work: Callable[..., Any],
    *given: Any,
    size: int = 2,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """What `work` gives on each of `size` processes, which find each other as under `torchrun`.

    `work` is a function of a module; what it takes and gives is pickled.
    """
    ended = ends_of(work, *given, size=size, environment=environment)
    errors = [one.error or f"ended with status {one.status}" for one in ended if one.status]
    assert not errors, "\n".join(errors)
    return [one.value for one in ended]


def ends_of(
    work: Callable[..., Any],
    *given: Any,
    size: int = 2,
    environment: Mapping[str, str] | None = None,
) -> list[Ended]:
    """The same where processes may fail or be killed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the agent's
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(size)]
    processes = []
    for rank, (_, sends) in enumerate(pipes):
        announced = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            **(environment or {}),
        }
        passed = {**os.environ, **announced}
        process = _CONTEXT.Process(target=_run, args=(sends, passed, work, given), daemon=True)
        process.start()
        sends.close()
        processes.append(process)
    told = [_received(receives) for receives, _ in pipes]
    for process in processes:
        process.join()
    return [
        Ended(value, error, int(process.exitcode or 0))
        for process, (value, error) in zip(processes, told, strict=True)
    ]


def _run(
    sends: Connection, environment: dict[str, str], work: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    signal.alarm(_AT_MOST_SECONDS)
    gc.freeze()  # who looks at what was there before the fork has each page of it copied
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        told = work(*given), ""
    except BaseException:
        told = None, traceback.format_exc()
    sends.send_bytes(pickle.dumps(told))
    sends.close()
    sys.stdout.flush()
    os._exit(bool(told[1]))


def _received(receives: Connection) -> tuple[Any, str]:
    try:
        found: tuple[Any, str] = pickle.loads(receives.recv_bytes())
    except EOFError:
        found = None, ""
    receives.close()
    return found
