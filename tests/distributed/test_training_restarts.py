"""Processes that die, and are started again by their launcher: the run goes on to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from fits import PLAN, Fitted, fit_net
from ranks import ends_of, on_ranks
from test_training import assert_same_bits

import frostline as fl
from frostline.callbacks import saving

RESTARTED = {"TORCHELASTIC_RESTART_COUNT": "1"}


class KillAt(fl.Hook):
    """Ends its process after so many steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_step(self, training: fl.Training) -> None:  # noqa: ARG002
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def fit_plan(out: Path, killed: int = -1, step: int = 0) -> Fitted:
    """By a plan with dropout in what it trains; the process `killed` dies after a step."""
    saving.SAVE_SECONDS, saving._SHARE_OF_TIME = 0.0, 0
    hooks = [KillAt(step)] if os.environ["RANK"] == str(killed) else []
    return fit_net(plan=PLAN, out=out, hooks=hooks, dropout=0.2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    found: Fitted = on_ranks(fit_plan, tmp_path_factory.mktemp("whole") / "run", size=3)[0]
    return found


@pytest.mark.parametrize(("killed", "step"), [(1, 1), (0, 13), (2, 22)])
def test_a_run_whose_process_was_killed_ends_at_the_bits_of_one_undisturbed(
    killed: int, step: int, undisturbed: Fitted, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = ends_of(fit_plan, out, killed, step, size=3)
    assert ended[killed].status == -signal.SIGKILL
    for other in {0, 1, 2} - {killed}:
        assert "TrainingError: another of the 3 processes is gone" in ended[other].error
    for found in on_ranks(fit_plan, out, size=3, environment=RESTARTED):
        assert_same_bits(found, undisturbed)
        assert found.frozen == undisturbed.frozen


def test_a_run_that_no_restart_announces_is_not_resumed(tmp_path: Path) -> None:
    on_ranks(fit_plan, tmp_path / "run", size=2)
    ended = ends_of(fit_plan, tmp_path / "run", size=2)
    assert "OutputError" in ended[0].error
    assert "already holds a run" in ended[1].error


def fit_head(out: Path | None, step: int = 0, resume: bool = False) -> Fitted:
    saving.SAVE_SECONDS, saving._SHARE_OF_TIME = 0.0, 0
    return fit_net("head", out=out, resume=resume, hooks=[KillAt(step)])


def test_one_process_goes_on_with_the_run_of_several(tmp_path: Path) -> None:
    ends_of(fit_head, tmp_path / "run", 7)
    alone, whole = fit_head(tmp_path / "run", resume=True), fit_head(None)
    assert alone.losses == pytest.approx(whole.losses, rel=1e-6)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(alone.tensors[name], tensor)
