"""Runs whose processes have CUDA devices, and average over NCCL."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from fits import PLAN, Fitted, fit_net
from ranks import on_ranks

from frostline.world import world_here

DEVICES = torch.cuda.device_count()


def _alone(grouped: bool) -> Fitted:
    """A run of a plan on the first device, in a group of one or in none."""
    if grouped:
        torch.cuda.set_device(0)
        dist.init_process_group("nccl")
        assert world_here("cuda").size == 1
    found = fit_net(plan=PLAN, device="cuda")
    if grouped:
        dist.destroy_process_group()
    return found


def _together() -> tuple[Fitted, str]:
    """The same on the device of each of several, with what they average over."""
    world_here("cuda")
    return fit_net(plan=PLAN, device="cuda", sync_norm=True), str(dist.get_backend())


@pytest.mark.skipif(not DEVICES, reason="there is no CUDA device here")
def test_a_group_of_one_over_nccl_ends_at_the_bits_of_no_group() -> None:
    (grouped,), (plain,) = on_ranks(_alone, True, size=1), on_ranks(_alone, False, size=1)
    assert grouped.losses == plain.losses
    assert grouped.frozen == plain.frozen
    assert all(torch.equal(t, plain.tensors[name]) for name, t in grouped.tensors.items())


@pytest.mark.skipif(DEVICES < 2, reason=f"needs two CUDA devices, and there are {DEVICES} here")
def test_two_devices_over_nccl_train_to_the_losses_of_one() -> None:
    (alone,) = on_ranks(_alone, False, size=1)
    (first, backend), (second, _) = on_ranks(_together)
    assert "nccl" in backend
    assert first.losses == second.losses
    assert first.losses == pytest.approx(alone.losses, rel=1e-5)
    assert first.frozen == second.frozen
