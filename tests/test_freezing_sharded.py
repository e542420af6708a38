"""Models sharded by `fully_shard` in one process; for several see `distributed/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import frostline as fl
from frostline.deltas import load_delta, save_delta


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))


def sharded(mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    made = net()
    fully_shard(made[0], mesh=mesh)
    return fully_shard(made, mesh=mesh)


def test_a_model_frozen_after_fully_shard_is_proved(mesh: Any) -> None:
    model = sharded(mesh)
    frozen = fl.freeze(model, "0")
    assert frozen.verify().tensors == 7
    model[0][0].weight.data.to_local()[0, 0] += 0.5
    with pytest.raises(fl.DriftError, match=r"0\.0\.weight: moved by up to 0\.5 \(1 of 16"):
        frozen.verify()


def test_a_whole_model_in_one_process_has_the_fingerprint_of_the_plain_one(mesh: Any) -> None:
    assert fl.fingerprint(sharded(mesh)) == fl.fingerprint(net())


def test_a_delta_of_it_fits_the_plain_model(mesh: Any, tmp_path: Path) -> None:
    model, plain = sharded(mesh), net()
    fl.freeze(model, "0")
    model[1].weight.data.to_local().fill_(3.0)
    save_delta(model, tmp_path / "delta.safetensors")
    load_delta(plain, tmp_path / "delta.safetensors")
    assert bool((plain[1].weight == 3).all())
    load_delta(model, tmp_path / "delta.safetensors")
