"""A Trainer's run under a plan, killed and resumed, ends at the bits of one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_world import (
    PICTURES,
    ROWS,
    KillAt,
    KilledError,
    Labelled,
    bits,
    pictures_net,
    trainer,
)
from transformers import TrainerState, TrainingArguments

import frostline as fl
from frostline.transformers import Freeze
from frostline.transformers.callback import other_order

# Head; the neck from within the third epoch on, at rates of its own; the head until it is good.
PLAN = fl.Plan(
    [
        fl.Phase(name="head", train="head", steps=10),
        fl.Phase(name="neck", train="neck | head", epochs=2, lr=0.02, layer_decay=0.5),
        fl.Phase(
            name="head again",
            train="head",
            epochs=2,
            state="fresh",
            until=fl.Until(monitor="eval_loss", patience=1),
        ),
    ]
)


def run(folder: Path, *callbacks: Any, resume: Any = None, **changes: Any) -> nn.Module:
    """Train a new model; a resumed run begins with other random numbers."""
    model = Labelled()
    torch.manual_seed(7 if resume is None else 99)
    saving = {"save_strategy": "steps", "save_steps": 3, "max_grad_norm": 0.5}
    made = trainer(model, folder, Freeze(PLAN, module="model"), *callbacks, **saving | changes)
    made.train(resume_from_checkpoint=resume)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return bits(run(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("accumulated")
    return bits(run(folder, per_device_train_batch_size=4, gradient_accumulation_steps=2))


@pytest.mark.parametrize("kill_at", [4, 7, 8, 10, 11, 12, 16, 18])
def test_a_run_killed_within_an_epoch_resumes_to_the_same_bits(
    kill_at: int, whole: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(kill_at))
    assert bits(run(tmp_path, resume=True)) == whole


@pytest.mark.parametrize("kill_at", [5, 9, 12, 13, 14, 17])
def test_a_run_saved_at_the_end_of_epochs_resumes_to_the_same_bits(
    kill_at: int, whole: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(kill_at), save_strategy="epoch")
    assert bits(run(tmp_path, resume=True, save_strategy="epoch")) == whole


@pytest.mark.parametrize("kill_at", [6, 11])
def test_a_run_that_accumulates_gradients_resumes_to_the_same_bits(
    kill_at: int, accumulated: dict[str, str], tmp_path: Path
) -> None:
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(kill_at), **changes)
    assert bits(run(tmp_path, resume=True, **changes)) == accumulated


def test_the_same_trainer_goes_on_after_an_exception(whole: dict[str, str], tmp_path: Path) -> None:
    model, kill = Labelled(), KillAt(11)
    torch.manual_seed(7)
    saving = {"save_strategy": "steps", "save_steps": 3, "max_grad_norm": 0.5}
    made = trainer(model, tmp_path, Freeze(PLAN, module="model"), kill, **saving)
    with pytest.raises(KilledError):
        made.train()
    made.remove_callback(kill)
    made.train(resume_from_checkpoint=True)
    assert bits(model) == whole


def pictures_run(folder: Path, *callbacks: Any, resume: Any = None) -> nn.Module:
    plan = fl.Plan(
        [
            fl.Phase(train="classifier", steps=4),
            fl.Phase(train="vit.layers.1 | classifier", epochs=1),
            fl.Phase(train="classifier", epochs=1),
        ]
    )
    model = pictures_net()
    made = trainer(
        model, folder, Freeze(plan), *callbacks, data=PICTURES, save_strategy="steps", save_steps=2
    )
    made.train(resume_from_checkpoint=resume)
    return model


def test_weights_that_the_trainer_does_not_find_in_its_checkpoint_are_brought_back(
    tmp_path: Path,
) -> None:
    """transformers 5 saves ViT under older names, and its Trainer then loads the head alone."""
    whole = bits(pictures_run(tmp_path / "whole"))
    with pytest.raises(KilledError):
        pictures_run(tmp_path, KillAt(8))
    assert bits(pictures_run(tmp_path, resume=True)) == whole


def test_weights_that_cannot_be_brought_back_are_told(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        pictures_run(tmp_path, KillAt(8))
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run" / "checkpoint-6", moved)
    with pytest.raises(fl.ConfigError, match="does not have the weights that the checkpoint was"):
        pictures_run(tmp_path, resume=str(moved))


def test_a_moved_checkpoint_resumes_to_the_same_bits(whole: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(11))
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run" / "checkpoint-9", moved)
    assert bits(run(tmp_path, resume=str(moved))) == whole


def test_another_plan_is_refused_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(5))

    def resumed(plan: fl.Plan) -> None:
        made = trainer(Labelled(), tmp_path, Freeze(plan, module="model"))
        made.train(resume_from_checkpoint=True)

    with pytest.raises(fl.ConfigError, match="the state is of another plan"):
        resumed(fl.Plan([fl.Phase(train="neck", epochs=1)]))
    resumed(fl.Plan([*PLAN, fl.Phase(train="neck", epochs=1)]))


def test_a_checkpoint_saved_without_freeze_has_no_place_in_a_plan(tmp_path: Path) -> None:
    trainer(Labelled(), tmp_path, save_strategy="epoch", num_train_epochs=1).train()
    with pytest.raises(fl.ConfigError, match="the checkpoint was saved without Freeze"):
        run(tmp_path, resume=True)


def test_an_optimizer_over_other_parameters_than_were_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(5))
    model = Labelled()
    order = reversed(list(model.parameters()))
    other = torch.optim.AdamW([{"params": list(order)}, {"params": []}], lr=1e-2)
    made = trainer(model, tmp_path, Freeze(PLAN, module="model"))
    made.optimizer = other
    with pytest.raises((fl.ConfigError, ValueError), match=r"over other parameters|doesn't match"):
        made.train(resume_from_checkpoint=True)


def test_a_resume_between_the_last_step_of_an_epoch_and_its_evaluation_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import transformers

    with pytest.raises(KilledError):
        run(tmp_path, KillAt(6), save_steps=4)
    transformers.utils.logging.enable_propagation()
    run(tmp_path, resume=True)
    transformers.utils.logging.disable_propagation()
    assert "between the last step of an epoch and its evaluation" in caplog.text
    assert len(ROWS) == 26


def test_a_resume_that_goes_through_the_data_in_another_order_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the Trainer's own doing, which the findings show without Freeze."""
    import transformers

    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    with pytest.raises(KilledError):
        run(tmp_path, KillAt(4), **workers)
    transformers.utils.logging.enable_propagation()
    run(tmp_path, resume=True, **workers)
    transformers.utils.logging.disable_propagation()
    assert "later epochs of persistent workers in another order" in caplog.text


@pytest.mark.parametrize(
    ("how", "epoch", "told"),
    [
        ("group_by_length", 1.5, "samples that it groups by length"),
        ("group_by_length", 0.5, ""),
        ("random", 1.5, ""),
    ],
)
def test_samples_by_length_come_in_another_order_from_the_second_epoch_on(
    how: str, epoch: float, told: str, tmp_path: Path
) -> None:
    args = TrainingArguments(str(tmp_path), train_sampling_strategy=how, use_cpu=True)
    assert other_order(args, TrainerState(epoch=epoch)) == told
