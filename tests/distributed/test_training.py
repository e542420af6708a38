"""Runs on several processes against the same run in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fits import PLAN, Fitted, fit_net, net, pictures
from ranks import on_ranks

import frostline as fl
from frostline.data import make_batches
from frostline.devices import Compute
from frostline.engine import predict

BATCHES: Any = {"batch_size": 8, "shuffle": False, "seed": 0}


def assert_alike(shared: list[Fitted], alone: Fitted, *, rtol: float = 1e-6) -> None:
    for found in shared:
        assert found.losses == pytest.approx(alone.losses, rel=rtol)
        for own, other in zip(found.metrics, alone.metrics, strict=True):
            assert own == pytest.approx(other, rel=rtol)
        assert found.ended == alone.ended
        # What an earlier phase trained is no more than alike; what none did is the same.
        assert found.frozen[:3] == alone.frozen[:3]
    for found in shared[1:]:
        assert found.frozen == shared[0].frozen
        assert_same_bits(found, shared[0])


def assert_same_bits(one: Fitted, other: Fitted) -> None:
    assert one.losses == other.losses
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.parametrize("size", [2, 3])
def test_a_head_learns_as_in_one_process(size: int) -> None:
    assert_alike(on_ranks(fit_net, "head", size=size), fit_net("head"))


def fit_plan(out: Path | None = None) -> Fitted:
    return fit_net(plan=PLAN, sync_norm=True, out=out)


def test_a_plan_of_three_phases_goes_as_in_one_process(tmp_path: Path) -> None:
    first, second = on_ranks(fit_plan, tmp_path / "run")
    assert_alike([first, second], fit_plan())
    assert (first.folder, second.folder) == (str(tmp_path / "run"), "")
    opened = fl.open_run(tmp_path / "run")
    assert len(opened.folder.metrics.read_text().splitlines()) == len(first.losses)
    assert opened.verify().tensors == len(net().stem.state_dict())


def fit_top(sync_norm: bool, count: int = 37) -> Fitted:
    return fit_net("head | top", sync_norm=sync_norm, count=count, lr=3e-3)


def test_a_norm_of_all_processes_learns_as_in_one() -> None:
    assert_alike(on_ranks(fit_top, True), fit_top(True))


def test_a_norm_of_each_process_learns_otherwise_and_ends_alike() -> None:
    first, second = on_ranks(fit_top, False)
    assert_same_bits(first, second)
    model = net()
    model.load_state_dict(first.tensors)
    outputs = predict(model, make_batches(pictures(19, 2), **BATCHES), Compute("cpu")).outputs
    judged = fl.Classification(3).summarise(outputs, pictures(19, 2).tensors[1])
    assert first.best == second.best == pytest.approx(dict(judged.headline()))
    assert first.losses != pytest.approx(fit_top(False).losses, rel=1e-3)


@pytest.mark.parametrize("sync_norm", [True, False])
def test_who_has_no_sample_of_a_last_batch_goes_along(sync_norm: bool) -> None:
    shared = on_ranks(fit_top, sync_norm, 33 if sync_norm else 34, size=3)
    assert_same_bits(shared[0], shared[1])
    assert_same_bits(shared[0], shared[2])
    if sync_norm:
        assert_alike(shared, fit_top(True, 33))


def test_a_run_repeated_gives_the_same_bits() -> None:
    one, again = (on_ranks(fit_top, True, size=3)[0] for _ in range(2))
    assert_same_bits(one, again)
