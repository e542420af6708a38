"""Processes that compute together: sums, what the first decides, and who fails."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import ends_of, on_ranks

import frostline as fl
from frostline.errors import ConfigError, TrainingError
from frostline.world import ALONE, decided, gathered, gathered_names, together, world_here


def _meetings() -> dict[str, Any]:
    world = world_here("cpu")
    again = world_here("cpu")
    rank = world.rank
    rows = torch.tensor([[-(2**31), 0x7FC00000], [0x7FA00201, 1]], dtype=torch.int32)
    own = torch.arange(3.0, dtype=torch.bfloat16) + rank
    world.barrier()
    return {
        "who": (world.rank, world.size, world.writes, again.rank),
        "small": world.sum(torch.tensor([1.0 + rank, 0.1], dtype=torch.float64)),
        "large": world.sum(torch.full((5, 2), 1 + rank)),
        "own": own + world.sum(own) * 0,
        "gathered": gathered(world, rows[: 1 + rank].view(torch.float32)),
        "flags": gathered(world, torch.tensor([rank == 0])),
        "names": gathered_names(world, ["a/ü.png", "b\udcff.png"][: 2 - 2 * rank]),
        "decided": decided(world, {"form": "bf16", "at": 0.1} if world.writes else None),
        "backend": dist.get_backend(),
    }


def test_processes_of_a_launcher_add_and_gather_what_they_have() -> None:
    first, second = on_ranks(_meetings)
    assert (first.pop("who"), second.pop("who")) == ((0, 2, True, 0), (1, 2, False, 1))
    assert first.pop("own").tolist() == [0, 1, 2]
    assert second.pop("own").tolist() == [1, 2, 3]
    for found in (first, second):
        assert found["small"].tolist() == [3.0, 0.2]
        assert found["large"].tolist() == [[3, 3]] * 5
        bits = found["gathered"].view(torch.int32)
        assert bits.tolist() == [[-(2**31), 0x7FC00000]] * 2 + [[0x7FA00201, 1]]
        assert found["flags"].tolist() == [True, False]
        assert found["names"] == ("a/ü.png", "b\udcff.png")
        assert found["decided"] == {"form": "bf16", "at": 0.1}
        assert found["backend"] == "gloo"


def test_one_process_is_alone_also_under_a_launcher() -> None:
    assert on_ranks(_who, size=1) == [(0, 1, 1)]
    assert world_here() is ALONE
    assert decided(ALONE, (1, 2)) == [1, 2]


def _who() -> tuple[int, int, int]:
    world = world_here("cpu")
    return world.rank, world.size, int(world is ALONE)


def _failing(kind: type[BaseException]) -> str:
    world = world_here("cpu")
    try:
        with together(world):
            if world.rank == 1:
                raise kind("the third picture is no picture")
            for _ in range(100):
                world.sum(torch.ones(100))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        (fl.DataError, "DataError: process 1: the third picture is no picture"),
        (fl.DriftError, "DriftError: process 1: the third picture is no picture"),
        (OSError, "TrainingError: process 1: OSError: the third picture is no picture"),
        (KeyboardInterrupt, "KeyboardInterrupt: process 1 was interrupted"),
    ],
)
def test_what_one_process_raises_ends_all(kind: type[BaseException], elsewhere: str) -> None:
    first, second, third = on_ranks(_failing, kind, size=3)
    assert first == third == elsewhere
    assert second == f"{kind.__name__}: the third picture is no picture"


def _dying() -> None:
    world = world_here("cpu")
    with together(world):
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.barrier()


def test_who_waits_for_a_dead_process_is_told_so_at_once() -> None:
    began = time.monotonic()
    first, second = ends_of(_dying)
    assert "TrainingError: another of the 2 processes is gone" in first.error
    assert second.status == -signal.SIGKILL
    assert time.monotonic() - began < 100, "it waited for the time limit"


def test_unreachable_processes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(TrainingError, match=r"announces 2 processes.*RANK expected.*torchrun"):
        world_here("cpu")


def test_more_processes_than_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = torch.device("cuda")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: found)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"process 1 .* no cuda device.*--nproc-per-node 1"):
        world_here()
