"""Started again by torch's own agent after one process was killed, all go on where they stopped."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from extraction_world import (
    PICTURES,
    Found,
    Noise,
    equal,
    extracted,
    killed_at,
    passes,
    rows_in_logs,
    until_killed,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from frostline.world import is_restarted, world_here


def _interrupted(root: Path) -> Found:
    torch.set_num_threads(1)
    world = world_here("cpu")
    if is_restarted():
        return extracted(Noise(), root / "store")
    with passes(killed_at(5, root) if world.rank == 0 else until_killed(root)):
        return extracted(Noise(), root / "store")


def by_agent(work: Any, *given: Any, size: int) -> dict[int, Any]:
    """What `work` gives on each of the processes that torch's agent starts, and starts again."""
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",  # as `torchrun --standalone`
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.05,
        start_method="forkserver",
    )
    found: dict[int, Any] = elastic_launch(settings, work)(*given)
    return found


def test_a_restarted_extraction_computes_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")  # the agent sets it for good
    found = by_agent(_interrupted, tmp_path, size=3)
    alone = extracted(Noise(), tmp_path / "alone")
    assert sorted(found) == [0, 1, 2]
    assert all(equal(one.values, alone.values) for one in found.values())
    assert all(one.computed < PICTURES for one in found.values())
    assert rows_in_logs(tmp_path / "store") == PICTURES
