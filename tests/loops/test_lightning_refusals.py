"""What Lightning would do to a freeze is refused as fitting starts, with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import frostline as fl
from frostline.lightning import Freeze
from frostline.lightning.refusals import check_callbacks, check_run
from lightning_runs import HEAD, TWO, Module, adam, loader, run, saving
from phased_net import net

pytestmark = [
    # Lightning 2.6 asks torch for a class that torch 2.15 calls by another name.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (BackboneFinetuning(), "^BackboneFinetuning stands beside Freeze and freezes and thaws by"),
        (StochasticWeightAveraging(0.1), "^StochasticWeightAveraging stands .* and puts an averag"),
        (EMAWeightAveraging(), "^EMAWeightAveraging stands beside Freeze and writes averages"),
        (ModelPruning("l1_unstructured"), "^ModelPruning stands beside Freeze and puts masked"),
        (LearningRateFinder(), "^LearningRateFinder stands .* tries the learning rate in steps"),
    ],
)
def test_a_callback_that_would_undo_the_freeze_is_refused(other: pl.Callback, why: str) -> None:
    with pytest.raises(fl.ConfigError, match=why):
        run(Freeze(TWO, module="model"), other)


class MovesFrozenWeights(pl.Callback):
    """What `EMAWeightAveraging` does, without its name."""

    def __init__(self) -> None:
        self.inner = EMAWeightAveraging(decay=0.9)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("on_train", "on_validation", "setup")):
            return getattr(object.__getattribute__(self, "inner"), name)
        return object.__getattribute__(self, name)


def test_an_average_that_is_not_known_by_name_is_found_by_the_proof() -> None:
    with pytest.raises(fl.DriftError, match="did not stay as it was"):
        run(Freeze("body", module="model"), MovesFrozenWeights(), max_epochs=3)


def test_a_search_of_the_trainer_for_a_learning_rate_is_refused(tmp_path: Path) -> None:
    module = Module()
    freeze = Freeze("body", module="model")
    options = {"logger": False, "accelerator": "cpu", "max_epochs": -1}
    trainer = pl.Trainer(callbacks=[freeze], default_root_dir=tmp_path, **options)
    with pytest.raises(fl.ConfigError, match=r"^LearningRateFinder stands beside .*fl\.freeze"):
        pl.tuner.Tuner(trainer).lr_find(module, loader(), loader())
    assert module.losses == []
    with pytest.raises(fl.ConfigError, match=r"^BatchSizeFinder .* tries the batch size in steps"):
        check_callbacks([BatchSizeFinder()])  # which takes only a module's own loaders


def test_several_devices_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^the Trainer runs under DDPStrategy, whose"):
        check_run(DDPStrategy(), Module())


def test_a_module_that_makes_its_steps_itself_is_refused() -> None:
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(fl.ConfigError, match=r"^Module makes its steps itself .* fl\.Session"):
        run(Freeze("body", module="model"), module=module)


@pytest.mark.filterwarnings("ignore:.LightningModule.configure_optimizers. returned .None.")
def test_a_module_without_an_optimizer_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^Module\.configure_optimizers gave 0 optimizers"):
        run(Freeze("body", module="model"), module=Module(lambda _: None))


def test_an_optimizer_over_other_parameters_is_refused() -> None:
    def of_a_copy(_: nn.Module) -> Any:
        return adam(net())

    with pytest.raises(fl.ConfigError, match=r"holds 10 tensors that are no parameters of this Mo"):
        run(Freeze("body", module="model"), module=Module(of_a_copy))


def test_a_part_that_is_not_there_is_refused_with_the_nearest() -> None:
    refusal = r"^Module has no module 'modle', which .* names\. Nearest: model"
    with pytest.raises(fl.ConfigError, match=refusal):
        run(Freeze("body", module="modle"))


def test_a_selector_that_matches_nothing_is_refused_before_the_first_step() -> None:
    module = Module()
    with pytest.raises(fl.SelectorError, match="nack"):
        run(
            Freeze(fl.Plan([HEAD, fl.Phase(train="nack", epochs=1)]), module="model"), module=module
        )
    assert module.losses == []


def test_a_phase_that_waits_for_a_metric_is_to_name_it() -> None:
    for phase in (
        fl.Phase(train="neck", epochs=9, until=fl.Until(patience=2)),
        fl.Phase(train="neck", epochs=9, start="best"),
    ):
        with pytest.raises(
            fl.ConfigError, match=r"^phase 2 goes by a metric .* monitor='val_loss'"
        ):
            run(Freeze(fl.Plan([HEAD, phase]), module="model"))


def test_a_metric_that_was_not_logged_is_missed_at_the_end_of_the_epoch() -> None:
    plan = fl.Plan([fl.Phase(train="head", epochs=3, until=fl.Until(monitor="acc", patience=1))])
    with pytest.raises(fl.ConfigError, match="watches acc, and the epoch ended with val_loss"):
        run(Freeze(plan, module="model"))


def test_two_schedules_at_once_are_refused() -> None:
    def with_schedule(module: nn.Module) -> Any:
        optimizer = adam(module)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    plan = fl.Plan([fl.Phase(train="head", epochs=1, schedule="cosine")])
    with pytest.raises(fl.ConfigError, match=r"^phase 1 has a schedule of its own, .*: StepLR"):
        run(Freeze(plan, module="model"), module=Module(with_schedule))


def test_a_phase_is_not_taken_for_a_plan() -> None:
    with pytest.raises(fl.ConfigError, match=r"^got a phase.*fl\.Plan\(\[fl\.Phase\(name='head'"):
        Freeze(HEAD)  # type: ignore[arg-type]  # that is the mistake


def test_a_freeze_that_has_not_begun_says_so() -> None:
    with pytest.raises(fl.ConfigError, match=r"no session before the Trainer fits\. Call trainer"):
        _ = Freeze(TWO).session


def test_a_checkpoint_of_another_optimizer_or_plan_is_refused(tmp_path: Path) -> None:
    def sgd(module: nn.Module) -> Any:
        return torch.optim.SGD(module.parameters(), lr=0.1)

    run(Freeze(TWO, module="model"), saving(tmp_path), max_epochs=3)
    saved = tmp_path / "step=12.ckpt"
    with pytest.raises(fl.ConfigError, match="saved with Adam, and this run has SGD"):
        run(Freeze(TWO, module="model"), saving(tmp_path), module=Module(sgd), resume=saved)
    with pytest.raises(fl.ConfigError, match="the state is of another plan"):
        run(Freeze("neck", module="model"), saving(tmp_path), resume=saved)


def test_a_checkpoint_with_another_frozen_part_is_refused(tmp_path: Path) -> None:
    run(Freeze(TWO, module="model"), saving(tmp_path), max_epochs=1)
    saved = tmp_path / "step=4.ckpt"
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["model.body.0.bias"] += 1
    torch.save(content, saved)
    with pytest.raises(fl.DriftError, match=r"^cannot resume within head"):
        run(Freeze(TWO, module="model"), saving(tmp_path), resume=saved)


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    run(Freeze(TWO, module="model"), saving(tmp_path), max_epochs=1)
    saved = tmp_path / "step=4.ckpt"
    content = torch.load(saved, weights_only=True)
    content["callbacks"]["Freeze"]["format"] = "another"
    torch.save(content, saved)
    with pytest.raises(fl.ConfigError, match=r"^this is no state of a freeze that this version"):
        run(Freeze(TWO, module="model"), saving(tmp_path), resume=saved)
