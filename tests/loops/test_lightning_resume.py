"""A Lightning run under a plan that is killed and resumed ends at the bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.lightning import Freeze
from lightning_runs import (
    TWO,
    KillAt,
    KilledError,
    Module,
    ResumableLoader,
    bits,
    last_saved,
    loader,
    run,
    saving,
)

pytestmark = [
    # Lightning 2.6 asks torch for a class that torch 2.15 calls by another name.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

# Head, then the neck from within the third epoch on, then the head alone until the loss is good.
STEPS = fl.Plan(
    [
        fl.Phase(name="head", train="head", steps=10, lr=0.05),
        fl.Phase(name="neck", train="neck | head", epochs=2, lr=0.02, layer_decay=0.5),
        fl.Phase(
            name="head again",
            train="head",
            epochs=2,
            state="fresh",
            until=fl.Until(monitor="val_loss", patience=1),
        ),
    ]
)


def sgd_with_steps(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, str]]:
    """The bits of runs that nothing killed."""
    options = {
        "epochs": (TWO, loader(), None),
        "steps": (STEPS, ResumableLoader(), None),
        "schedule": (TWO, ResumableLoader(), sgd_with_steps),
    }
    return {
        name: bits(run(Freeze(plan, module="model"), module=Module(made), train=train))
        for name, (plan, train, made) in options.items()
    }


@pytest.mark.parametrize("kill_at", [2, 5, 7, 9, 10, 11, 13, 14, 15, 16])
def test_a_run_killed_in_any_epoch_resumes_to_the_same_bits(
    kill_at: int, whole: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(Freeze(TWO, module="model"), saving(tmp_path), KillAt(kill_at))
    resumed = run(
        Freeze(TWO, module="model"),
        saving(tmp_path),
        resume=last_saved(tmp_path),  # None where none was saved before the kill
    )
    assert bits(resumed) == whole["epochs"]


@pytest.mark.parametrize("kill_at", [4, 7, 10, 11, 12, 15, 16, 18, 20, 24])
def test_a_run_killed_within_an_epoch_resumes_to_the_same_bits(
    kill_at: int, whole: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    def callbacks() -> tuple[Any, ...]:
        return Freeze(STEPS, module="model"), saving(tmp_path, every_n_train_steps=5)

    with pytest.raises(KilledError):
        run(*callbacks(), KillAt(kill_at), train=ResumableLoader())
    resumed = run(*callbacks(), train=ResumableLoader(), resume=last_saved(tmp_path))
    assert bits(resumed) == whole["steps"]


@pytest.mark.parametrize("kill_at", [4, 11, 14])
def test_schedules_and_momentum_go_on_over_groups_that_joined(
    kill_at: int, whole: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    def callbacks() -> tuple[Any, ...]:
        return Freeze(TWO, module="model"), saving(tmp_path, every_n_train_steps=1)

    with pytest.raises(KilledError):
        run(*callbacks(), KillAt(kill_at), train=ResumableLoader(), module=Module(sgd_with_steps))
    resumed = run(
        *callbacks(),
        train=ResumableLoader(),
        module=Module(sgd_with_steps),
        resume=last_saved(tmp_path),
    )
    assert bits(resumed) == whole["schedule"]


def test_a_checkpoint_between_an_epochs_last_step_and_its_end_counts_the_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lightning goes on with the next epoch then; without validation nothing is left out."""
    whole = run(Freeze(TWO, module="model"), train=ResumableLoader(), limit_val_batches=0)
    freeze = Freeze(TWO, module="model")
    with pytest.raises(KilledError):
        run(
            Freeze(TWO, module="model"),
            saving(tmp_path, every_n_train_steps=4),
            KillAt(10),
            train=ResumableLoader(),
            limit_val_batches=0,
        )
    resumed = run(
        freeze,
        saving(tmp_path, every_n_train_steps=4),
        train=ResumableLoader(),
        resume=last_saved(tmp_path),
        limit_val_batches=0,
    )
    assert [(end.name, end.epochs) for end in freeze.ends] == [("head", 2), ("neck", 2)]
    assert "between the last step of an epoch and its validation" in caplog.text
    assert bits(resumed) == bits(whole)
