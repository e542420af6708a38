"""Lightning under a plan: the bits of a freeze done right by hand, phases, proofs, deltas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.lightning import Freeze
from lightning_runs import TWO, Module, Watching, adam, bits, loader, run, saving, trainer
from phased_net import net, rows

pytestmark = [
    # Lightning 2.6 asks torch for a class that torch 2.15 calls by another name.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class FreezeByHand(pl.Callback):
    """The head for two epochs, then the neck too; all that is easily forgotten, remembered."""

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        model = module.model
        if trainer.current_epoch == 0:
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        if trainer.current_epoch == 2:
            model.neck.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(model.neck.parameters())})
        model.train()
        model.body.eval()
        model.neck.train(trainer.current_epoch >= 2)


def head_alone(module: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.model.head.parameters(), lr=0.01)


def test_a_plan_ends_at_the_bits_of_a_freeze_done_right_by_hand() -> None:
    watched, by_hand = Watching(), Watching()
    ours = run(Freeze(TWO, module="model"), watched)
    theirs = run(FreezeByHand(), by_hand, module=Module(head_alone), max_epochs=4)
    assert watched.seen == by_hand.seen
    assert ours.losses == theirs.losses
    assert bits(ours) == bits(theirs)


def test_what_is_frozen_is_what_a_loop_of_ones_own_freezes() -> None:
    freeze, model = Freeze(TWO, module="model"), net()
    run(freeze)
    session, hashes = fl.Session(model, TWO, steps_per_epoch=4), []
    while not session.is_over:
        session.enter()
        hashes.append(session.leave().fingerprint)
    assert freeze.ends[0].proof.fingerprint == hashes[0]
    assert freeze.ends[1].proof.fingerprint == hashes[1]


def test_a_selector_is_frozen_as_long_as_the_trainer_trains() -> None:
    freeze, watched = Freeze("body | neck", module="model"), Watching()
    module = run(freeze, watched, max_epochs=3)
    assert watched.seen == [(epoch, ("head",), ("head",)) for epoch in range(3) for _ in range(4)]
    assert [(end.reason, end.epochs, end.steps) for end in freeze.ends] == [
        ("training ended", 3, 12)
    ]
    assert bits(module.model.body) == bits(net().body)
    assert watched.rates == [[0.01]] * 12


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_part_is_frozen_in_the_precision_that_the_trainer_gives_it(precision: Any) -> None:
    freeze = Freeze(TWO, module="model")
    module = run(freeze, precision=precision)
    assert [end.reason for end in freeze.ends] == ["2 epochs", "2 epochs"]
    assert (
        module.model.body[0].bias.dtype
        == {
            "bf16-mixed": torch.float32,
            "bf16-true": torch.bfloat16,
            "64-true": torch.float64,
        }[precision]
    )


def test_selectors_are_paths_in_the_lightning_module_without_a_part() -> None:
    watched = Watching()
    run(Freeze("model.body"), watched, max_epochs=1)
    assert {wants for _, wants, _ in watched.seen} == {("neck", "head")}


def test_validation_and_a_user_who_calls_train_leave_frozen_parts_in_eval() -> None:
    class Careless(Module):
        def on_train_epoch_start(self) -> None:
            self.train()

        def on_validation_epoch_end(self) -> None:
            self.model.body.train()

    freeze, watched = Freeze("body", module="model"), Watching()
    run(freeze, watched, module=Careless(), max_epochs=2, val_check_interval=2)
    assert {live for _, _, live in watched.seen} == {("neck", "head")}
    assert bits(freeze.session.model.body) == bits(net().body)


def test_a_phase_by_steps_ends_within_an_epoch() -> None:
    plan = fl.Plan([fl.Phase(train="head", steps=6), fl.Phase(train="neck", epochs=1)])
    freeze, watched = Freeze(plan, module="model"), Watching()
    run(freeze, watched)
    assert [wants for _, wants, _ in watched.seen] == [("head",)] * 6 + [("neck",)] * 2
    assert [end.reason for end in freeze.ends] == ["6 steps", "1 epoch"]


def test_a_phase_by_steps_that_ends_with_an_epoch_leaves_the_next_one_whole() -> None:
    plan = fl.Plan([fl.Phase(train="head", steps=4), fl.Phase(train="neck", epochs=1)])
    freeze, watched = Freeze(plan, module="model"), Watching()
    run(freeze, watched)
    assert [wants for _, wants, _ in watched.seen] == [("head",)] * 4 + [("neck",)] * 4
    assert [end.epochs for end in freeze.ends] == [1, 1]


def test_batches_that_are_accumulated_make_one_step_of_a_phase() -> None:
    plan = fl.Plan([fl.Phase(train="head", steps=3), fl.Phase(train="neck", steps=1)])
    watched = Watching()
    run(Freeze(plan, module="model"), watched, accumulate_grad_batches=2)
    assert [wants for _, wants, _ in watched.seen] == [("head",)] * 6 + [("neck",)] * 2


def test_a_phase_ends_where_the_logged_metric_gets_no_better() -> None:
    class Worse(Module):
        def validation_step(self, *_: Any) -> None:
            self.log("val_loss", float(self.trainer.current_epoch))

    plan = fl.Plan(
        [
            fl.Phase(train="head", epochs=9, until=fl.Until(patience=2)),
            fl.Phase(train="neck", epochs=1),
        ]
    )
    freeze = Freeze(plan, module="model", monitor="val_loss")
    run(freeze, module=Worse())
    assert [end.reason for end in freeze.ends] == ["no better val_loss for 2 epochs", "1 epoch"]
    assert [end.epochs for end in freeze.ends] == [3, 1]


def test_rates_are_those_of_a_phase_that_says_some_and_else_the_modules_own() -> None:
    plan = fl.Plan(
        [
            fl.Phase(train="head", epochs=1),
            fl.Phase(train="head", epochs=1, lr=0.5),
            fl.Phase(train="head", epochs=1, lr=0.4, schedule="cosine", warmup=0),
        ]
    )
    watched = Watching()
    run(Freeze(plan, module="model"), watched)
    assert watched.rates[:8] == [[0.01]] * 4 + [[0.5]] * 4
    # Noted before each step, when the rate is still the one of the step before.
    assert watched.rates[9:] == [pytest.approx([0.4 * f]) for f in (1.0, 0.853553, 0.5)]


def test_a_rate_that_the_module_sets_in_each_step_stays() -> None:
    class WarmingUp(Module):
        def optimizer_step(self, *given: Any) -> None:
            _, _, optimizer, closure = given
            for group in optimizer.param_groups:
                group["lr"] = 0.001 * (self.trainer.global_step + 1)
            optimizer.step(closure=closure)

    watched = Watching()
    run(Freeze("body", module="model"), watched, module=WarmingUp(), max_epochs=1)
    assert watched.rates == [[0.01], [0.001], [0.002], [0.003]]


# Proofs and deltas


class Writes(pl.Callback):
    """Code that writes where it should not."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == 6:
            with torch.no_grad():
                module.model.body[0].bias[0] += 1


def test_what_something_moved_is_drift_by_name_at_the_end_of_the_phase() -> None:
    with pytest.raises(fl.DriftError, match=r"body\.0\.bias"):
        run(Freeze(TWO, module="model"), Writes())


def test_what_moved_is_found_before_a_checkpoint_gets_its_delta(tmp_path: Path) -> None:
    freeze = Freeze("body", module="model")
    with pytest.raises(fl.DriftError, match=r"body\.0\.bias"):
        run(freeze, Writes(), saving(tmp_path, every_n_train_steps=3), max_epochs=2)
    assert [file.name for file in tmp_path.glob("*.delta.safetensors")] == [
        "step=3.delta.safetensors"
    ]


def test_a_delta_beside_each_checkpoint_gives_its_weights_on_the_base(tmp_path: Path) -> None:
    run(Freeze(TWO, module="model"), saving(tmp_path))
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == 4
    for file in checkpoints:
        model = net()
        fl.load_delta(model, file.with_suffix(".delta.safetensors"))
        kept = torch.load(file, weights_only=True)["state_dict"]
        assert all(torch.equal(kept[f"model.{n}"], t) for n, t in model.state_dict().items())


def test_a_delta_goes_with_its_checkpoint(tmp_path: Path) -> None:
    best = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=1)
    run(Freeze("body", module="model"), best, max_epochs=3)
    assert len(list(tmp_path.glob("*.ckpt"))) == 1
    assert len(list(tmp_path.glob("*.delta.safetensors"))) == 1


def test_no_delta_is_written_where_none_is_asked_for_or_training_is_over(tmp_path: Path) -> None:
    run(Freeze("body", module="model", deltas=False), saving(tmp_path), max_epochs=1)
    module, fitting = Module(), trainer(Freeze("body", module="model"), max_epochs=1)
    fitting.fit(module, loader(), loader(shuffle=False))
    fitting.save_checkpoint(tmp_path / "later.ckpt")
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".ckpt", ".ckpt"]


def test_a_run_that_is_resumed_without_its_freeze_is_told(tmp_path: Path) -> None:
    run(Freeze("body", module="model"), saving(tmp_path), max_epochs=1)
    file = next(tmp_path.glob("*.ckpt"))
    told = pytest.warns(UserWarning, match=r"add the following callbacks: .*'Freeze'")
    with told, pytest.raises(ValueError, match="parameter group"):
        run(resume=file, max_epochs=2)


def test_a_checkpoint_of_a_run_without_freeze_is_where_a_plan_may_begin(tmp_path: Path) -> None:
    run(saving(tmp_path), max_epochs=1)
    freeze = Freeze(TWO, module="model")
    run(freeze, saving(tmp_path), resume=next(tmp_path.glob("*.ckpt")))
    assert [(end.name, end.epochs) for end in freeze.ends] == [("head", 2), ("neck", 2)]


def test_a_plan_that_is_over_trains_no_more_when_resumed(tmp_path: Path) -> None:
    freeze = Freeze(TWO, module="model")
    done = run(Freeze(TWO, module="model"), saving(tmp_path), max_epochs=4)
    resumed = run(freeze, saving(tmp_path), resume=tmp_path / "step=16.ckpt", max_epochs=4)
    assert resumed.losses == []
    assert bits(resumed) == bits(done)
    again = run(freeze, saving(tmp_path), resume=tmp_path / "step=16.ckpt")
    assert again.losses == []
    assert bits(again) == bits(done)


# The second fit finds the modules held that the first one froze, which Lightning remarks on.
@pytest.mark.filterwarnings("ignore:Found 5 module")
def test_testing_a_checkpoint_changes_nothing_of_the_freeze(tmp_path: Path) -> None:
    class Tested(Module):
        test_step = Module.validation_step

    freeze = Freeze(TWO, module="model")
    fitting, module = trainer(freeze, saving(tmp_path)), Tested()
    fitting.fit(module, loader(), loader(shuffle=False))
    before, position = bits(module), freeze.session.position
    fitting.test(module, loader(shuffle=False), ckpt_path="best", verbose=False)
    assert freeze.session.position is position
    assert bits(module) == before
    fitting.fit_loop.epoch_progress.reset()
    fitting.fit(module, loader(), loader(shuffle=False))
    assert [end.name for end in freeze.ends] == ["head", "neck"]


def test_lightnings_older_package_takes_the_same_callback() -> None:
    import pytorch_lightning

    class Old(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return adam(self)

    freeze, module = Freeze(TWO, module="model"), Old()
    pytorch_lightning.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[freeze],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, torch.utils.data.DataLoader(rows(), batch_size=8))
    assert [end.reason for end in freeze.ends] == ["2 epochs", "2 epochs"]
    assert bits(module.model.body) == bits(net().body)


def test_without_lightning_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "frostline.lightning.package")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "frostline\[lightning\]"'):
        __import__("frostline.lightning.package")
