"""Runs in phases: what moves when, with which optimizer state, and that a resume ends the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import frostline as fl
from frostline.callbacks import saving
from frostline.config import RunSettings
from frostline.engine import Hook, Training
from frostline.records import EpochRecord, RunFolder
from phased_net import HEAD, HEAD_AGAIN, net, rows

NECK = fl.Phase(name="neck", train="neck | head", epochs=2, lr=0.02)
THREE = fl.Plan([HEAD, NECK, HEAD_AGAIN])


def fitted(model: nn.Module | None = None, **options: Any) -> fl.Run:
    wanted: dict[str, Any] = {"plan": THREE, "batch_size": 8, "device": "cpu", "features": "off"}
    return fl.fit(
        model or net(), options.pop("train", rows()), rows(12, seed=2), **{**wanted, **options}
    )


def bits(model: nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(model).tensors)


def figures(run: fl.Run) -> list[tuple[float, ...]]:
    """All but the times."""
    return [
        (r.phase, r.lr, *r.train.values(), r.best, *r.validation.headline().values())
        for r in run.history
    ]


class Watch(Hook):
    """Looks at the training after each step, epoch and phase."""

    def __init__(
        self,
        step: Callable[[Training], object] = lambda _: None,
        epoch: Callable[[Training], object] = lambda _: None,
    ) -> None:
        self._step = step
        self._epoch = epoch

    def on_step(self, training: Training) -> None:
        self._step(training)

    def on_epoch(self, training: Training) -> None:
        self._epoch(training)


class Notes(Hook):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_notice(self, text: str, /) -> None:
        self.lines.append(text)


# What moves when


def test_in_each_phase_moves_what_it_trains_and_nothing_else() -> None:
    model = net()
    seen = {0: bits(model)}
    fitted(model, hooks=[Watch(epoch=lambda t: seen.update({t.position.epochs: bits(model)}))])

    def moved(before: int, after: int) -> set[str]:
        return {n.partition(".")[0] for n in seen[0] if seen[before][n] != seen[after][n]}

    assert moved(0, 2) == {"head"}
    assert moved(2, 4) == {"neck", "head"}
    assert moved(4, 5) == {"head"}


def test_the_batch_norm_of_a_part_moves_only_while_the_part_trains() -> None:
    model, seen = net(), {}
    fitted(
        model,
        hooks=[
            Watch(
                epoch=lambda t: seen.update({t.position.epochs: model.neck[1].running_mean.clone()})
            )
        ],
    )
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[4])
    assert torch.equal(seen[4], seen[5])


def test_a_phase_may_name_what_is_frozen_instead() -> None:
    by_train = fitted(plan=fl.Plan([NECK]))
    by_freeze = fitted(plan=fl.Plan([fl.Phase(name="neck", freeze="body", epochs=2, lr=0.02)]))
    assert bits(by_train.model) == bits(by_freeze.model)


def test_a_phase_that_names_nothing_goes_on_with_what_trained() -> None:
    trained = []
    goes_on = fl.Phase(epochs=1, lr=0.01)
    fitted(
        plan=fl.Plan([NECK, goes_on]),
        hooks=[
            Watch(
                epoch=lambda t: trained.append(
                    {n for n, p in t.model.named_parameters() if p.requires_grad}
                )
            )
        ],
    )
    assert trained[0] == trained[-1]
    assert all(not name.startswith("body") for name in trained[-1])


def test_a_plan_of_one_phase_ends_at_the_bits_of_a_run_without_a_plan() -> None:
    model = net()
    fl.train_only(model, "neck | head")
    plain = fl.fit(
        model,
        rows(),
        rows(12, seed=2),
        epochs=2,
        lr=0.02,
        batch_size=8,
        device="cpu",
        features="off",
    )
    assert bits(fitted(plan=fl.Plan([NECK])).model) == bits(plain.model)


def test_after_the_run_each_module_has_its_own_mode_and_the_last_freeze_holds() -> None:
    model = net()
    model.body.eval()
    fitted(model)
    assert [model.head.training, model.neck.training] == [True, False]
    fl.thaw(model, "all")
    assert model.neck[1].training
    assert not model.body[1].training


def test_what_a_phase_froze_and_something_else_moved_is_drift() -> None:
    def spoil(training: Training) -> None:
        if training.position.phase == 2:
            with torch.no_grad():
                training.model.neck[0].weight[0, 0] += 1

    with pytest.raises(fl.DriftError, match=r"neck\.0\.weight"):
        fitted(hooks=[Watch(step=spoil)])


# Weights and optimizer state at a phase's beginning


def test_a_phase_may_start_from_the_best_epoch_of_the_phase_before() -> None:
    kept: dict[int, dict[str, str]] = {}
    firsts: dict[str, str] = {}

    def at_step(training: Training) -> None:
        if training.position.phase == 1 and training.position.phase_steps == 1:
            firsts.update(bits(training.model))

    long = fl.Phase(train="head", epochs=6, lr=4.0, schedule="constant")
    frozen_head = fl.Phase(train="neck", epochs=1, start="best", lr=0.01)
    run = fitted(
        plan=fl.Plan([long, frozen_head]),
        hooks=[Watch(at_step, lambda t: kept.update({t.position.epochs: bits(t.model)}))],
        monitor="accuracy",
    )
    best = run.phases[0].best_epoch
    assert best < 6, "the last epoch was the best one, and the test tells nothing"
    assert firsts["head.weight"] == kept[best]["head.weight"] != kept[6]["head.weight"]


@pytest.mark.parametrize("written", [False, True])
def test_a_best_epoch_of_an_early_phase_has_the_rest_as_it_was_before_the_run(
    tmp_path: Path, written: bool
) -> None:
    model = net()
    before = bits(model)
    worse = fl.Phase(train="neck | head", epochs=1, lr=5.0, schedule="constant", warmup=0)
    out = tmp_path / "run" if written else None
    run = fitted(model, plan=fl.Plan([HEAD, worse]), monitor="loss", out=out)
    assert run.best.phase == 1
    assert bits(model)["neck.0.weight"] == before["neck.0.weight"]
    assert bits(model)["neck.1.running_mean"] == before["neck.1.running_mean"]


def momentum_after_the_first_step(state: str) -> tuple[Tensor, Tensor]:
    """Adam's count of steps of a layer that stays and of one that joins."""
    seen = []

    def look(training: Training) -> None:
        if training.position.phase == 1 and training.position.phase_steps == 1:
            state = training.session.optimizer.state
            seen.extend(
                state[p]["step"].clone()
                for p in (training.model.head.weight, training.model.neck[0].weight)
            )

    plan = fl.Plan([HEAD, fl.Phase(train="neck | head", epochs=1, lr=0.02, state=state)])
    fitted(plan=plan, hooks=[Watch(step=look)])
    return seen[0], seen[1]


def test_what_stays_trainable_keeps_its_optimizer_state_and_what_is_thawed_begins_fresh() -> None:
    stays, joins = momentum_after_the_first_step("keep")
    assert stays == 2 * 4 + 1
    assert joins == 1


def test_a_phase_may_begin_with_a_fresh_optimizer() -> None:
    assert momentum_after_the_first_step("fresh") == (1, 1)


# How a phase ends


def test_a_phase_of_steps_ends_within_an_epoch_and_validates_there() -> None:
    run = fitted(plan=fl.Plan([fl.Phase(train="head", steps=6, lr=0.05), HEAD_AGAIN]))
    assert [r.steps for r in run.phases] == [6, 4]
    assert [r.phase for r in run.history] == [1, 1, 2]
    assert run.phases[0].ended == "6 steps"


def test_a_phase_of_fewer_steps_than_its_epoch_has_ended_by_them() -> None:
    run = fitted(plan=fl.Plan([fl.Phase(train="head", steps=2, epochs=1, lr=0.05), HEAD_AGAIN]))
    assert [(r.steps, r.ended) for r in run.phases] == [(2, "2 steps"), (4, "1 epoch")]


def test_a_phase_ends_when_its_target_is_reached() -> None:
    until = fl.Until(monitor="loss", target=1.0)
    run = fitted(plan=fl.Plan([fl.Phase(train="head", epochs=50, until=until, lr=0.1), HEAD_AGAIN]))
    losses = [record.validation.loss for record in run.history if record.phase == 1]
    assert min(losses[:-1], default=2.0) > 1.0 >= losses[-1]
    assert run.phases[0].ended == "loss reached 1"


def test_a_phase_ends_on_a_plateau_that_counts_only_changes_that_are_large_enough() -> None:
    until = fl.Until(monitor="loss", patience=2, min_change=1e9)
    run = fitted(plan=fl.Plan([fl.Phase(train="head", until=until, lr=0.01), HEAD_AGAIN]))
    assert run.phases[0].epochs == 3  # the first, and two that are no better by so much
    assert run.phases[0].ended == "no better loss for 2 epochs"


def test_a_phase_ends_when_its_time_is_over_also_within_an_epoch() -> None:
    until = fl.Until(minutes=1e-9)
    run = fitted(plan=fl.Plan([fl.Phase(train="head", until=until, lr=0.01), HEAD_AGAIN]))
    assert run.phases[0].steps == 1
    assert len(run.phases) == 2


def test_the_recipes_patience_ends_a_phase_and_not_the_run() -> None:
    plan = fl.Plan([fl.Phase(train="head", epochs=40, lr=1e-9), HEAD_AGAIN])
    run = fitted(plan=plan, patience=2, monitor="accuracy")
    assert run.phases[0].epochs < 40
    assert run.phases[1].epochs == 1


def test_each_phase_has_a_record_with_its_proof() -> None:
    run = fitted()
    assert [(r.phase, r.name, r.trained, r.epochs) for r in run.phases] == [
        (1, "head", 27, 2),
        (2, "neck", 27 + 72 + 16, 2),
        (3, "head again", 27, 1),
    ]
    assert [r.frozen.tensors for r in run.phases] == [
        7 + 7,  # of each part: 2 + 2 parameters, 3 buffers
        7,
        7 + 7,
    ]
    assert run.proof.tensors == 7


# Resume


class Stop(Exception):  # noqa: N818 - it stands for a kill
    pass


def stopped_at(step: int) -> Hook:
    count = 0

    def look(_: Training) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Stop

    return Watch(step=look)


@pytest.fixture
def saved_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(saving, "_SHARE_OF_TIME", 0)


class Wholes:
    """Runs that nothing stopped, each made once for all tests that compare with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[str, fl.Run] = {}

    def get(self, name: str, fit: Callable[[Path], fl.Run]) -> fl.Run:
        if name not in self._runs:
            self._runs[name] = fit(self.root / name)
        return self._runs[name]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    return Wholes(tmp_path_factory.mktemp("wholes"))


BEST = fl.Plan([HEAD, NECK.model_copy(update={"start": "best"}), HEAD_AGAIN])
STEPS = fl.Plan([fl.Phase(train="head", steps=5, lr=0.05), NECK, HEAD_AGAIN])


@pytest.mark.usefixtures("saved_at_each_step")
@pytest.mark.parametrize(
    ("features", "plan", "optimizer", "step"),
    [
        *(("off", THREE, "adamw", step) for step in (1, 2, 4, 5, 8, 9, 11, 16, 17, 20)),
        *(("off", BEST, "sgd", step) for step in (3, 8, 9, 15)),
        *(("off", STEPS, "adam", step) for step in (4, 5, 6, 13)),
        # Within an epoch, at a phase's end and at its first step; with the best epoch's weights.
        *(("stored", THREE, "adamw", step) for step in (2, 8, 9, 20)),
        *(("stored", BEST, "sgd", step) for step in (8, 9)),
        ("stored", STEPS, "adam", 6),
    ],
)
def test_a_run_stopped_at_any_step_resumes_to_the_same_bits(
    tmp_path: Path, wholes: Wholes, features: str, plan: fl.Plan, optimizer: str, step: int
) -> None:
    options: dict[str, Any] = {"plan": plan, "optimizer": optimizer, "precision": "exact"}
    options["features"] = "off" if features == "off" else wholes.root / "features"
    whole = wholes.get(f"{features} {optimizer}", lambda out: fitted(**options, out=out))
    with pytest.raises(Stop):
        fitted(**options, out=tmp_path / "cut", hooks=[stopped_at(step)])
    if step > 1:
        assert (tmp_path / "cut" / "last" / "delta.safetensors").exists()
    resumed = fitted(**options, out=tmp_path / "cut", resume=(tmp_path / "cut").exists())
    assert bits(resumed.model) == bits(whole.model)
    assert figures(resumed) == figures(whole)
    assert [(r.epochs, r.steps, r.best_epoch) for r in resumed.phases] == [
        (r.epochs, r.steps, r.best_epoch) for r in whole.phases
    ]
    last = [
        fl.load_delta(net(), run / "last" / "delta.safetensors")
        for run in (whole.folder.root, tmp_path / "cut")
    ]
    assert all(torch.equal(last[0].tensors[n], last[1].tensors[n]) for n in last[0].tensors)


@pytest.mark.usefixtures("saved_at_each_step")
def test_a_run_stopped_behind_a_best_epoch_starts_the_next_phase_from_it(tmp_path: Path) -> None:
    long = fl.Phase(train="head", epochs=6, lr=4.0, schedule="constant")
    plan = fl.Plan([long, fl.Phase(train="neck", epochs=1, start="best", lr=0.01)])
    whole = fitted(plan=plan, monitor="accuracy")
    assert whole.phases[0].best_epoch < 6, "the last epoch was the best one: this tells nothing"
    with pytest.raises(Stop):
        fitted(plan=plan, monitor="accuracy", out=tmp_path / "cut", hooks=[stopped_at(5 * 4 + 2)])
    resumed = fitted(plan=plan, monitor="accuracy", out=tmp_path / "cut", resume=True)
    assert figures(resumed) == figures(whole)


class Jittered(Dataset[tuple[Tensor, int]]):
    """Draws from Python's and numpy's generators, as augmentations of many libraries do."""

    def __init__(self) -> None:
        self.inner = rows()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.inner[index]
        return x + 0.1 * random.random() + 0.1 * float(np.random.rand()), int(y)


@pytest.mark.usefixtures("saved_at_each_step")
@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("step", [2, 6, 11])
def test_random_views_of_a_users_own_data_are_the_same_after_a_resume(
    tmp_path: Path, wholes: Wholes, loader: bool, step: int
) -> None:
    def made() -> object:
        return DataLoader(Jittered(), batch_size=8, shuffle=True) if loader else Jittered()

    whole = wholes.get(f"jittered {loader}", lambda out: fitted(train=made(), out=out))
    with pytest.raises(Stop):
        fitted(train=made(), out=tmp_path / "cut", hooks=[stopped_at(step)])
    resumed = fitted(train=made(), out=tmp_path / "cut", resume=True)
    assert bits(resumed.model) == bits(whole.model)


def test_the_callers_random_numbers_are_where_they_were() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    model = net()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    fitted(model)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_another_plan_is_refused_on_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fitted(out=tmp_path / "run", hooks=[stopped_at(9)])
    with pytest.raises(
        fl.ConfigError, match=r"other settings: the plan was .*'neck \| head'.* and is"
    ):
        fitted(plan=fl.Plan([HEAD, HEAD_AGAIN]), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("features", ["off", "auto"])
def test_a_longer_plan_may_thaw_what_was_frozen_so_far(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_FEATURES", str(tmp_path / "store"))
    whole = fitted(plan=fl.Plan([HEAD, NECK]), features=features, precision="exact")
    run = tmp_path / "run"
    fitted(plan=fl.Plan([HEAD]), out=run, features=features, precision="exact")
    longer = {"plan": fl.Plan([HEAD, NECK]), "features": features, "precision": "exact"}
    resumed = fitted(out=run, resume=True, **longer)
    assert bits(resumed.model) == bits(whole.model)
    assert RunFolder(run).read_frozen() == whole.proof.fingerprint


def test_a_longer_plan_may_not_thaw_what_is_another_now(tmp_path: Path) -> None:
    fitted(plan=fl.Plan([HEAD]), out=tmp_path / "run")
    other = net()
    with torch.no_grad():
        other.neck[0].weight[0, 0] += 1
    with pytest.raises(fl.DriftError, match=r"1 tensors differ, first neck\.0\.weight"):
        fitted(other, plan=fl.Plan([HEAD, NECK]), out=tmp_path / "run", resume=True)


def test_another_part_frozen_by_hand_is_refused_on_a_resume(tmp_path: Path) -> None:
    def frozen(selector: str) -> nn.Module:
        model = net()
        fl.freeze(model, selector)
        return model

    run = {"plan": None, "epochs": 2, "out": tmp_path / "run"}
    with pytest.raises(Stop):
        fitted(frozen("body"), **run, hooks=[stopped_at(6)])
    for selector, told in (("body.0", "now to train"), ("body | neck", r"neck\..* now frozen")):
        with pytest.raises(fl.ConfigError, match=f"another part frozen than .*{told}"):
            fitted(frozen(selector), **run, resume=True)


def test_other_weights_are_refused_on_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fitted(out=tmp_path / "run", hooks=[stopped_at(9)])
    other = net()
    with torch.no_grad():
        other.body[0].weight[0, 0] += 1
    with pytest.raises(fl.DriftError, match=r"cannot resume: the frozen part .* body\.0\.weight"):
        fitted(other, out=tmp_path / "run", resume=True)


@pytest.mark.usefixtures("saved_at_each_step")
def test_the_last_checkpoints_stay_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    whole = fitted(out=tmp_path / "whole")
    with pytest.raises(Stop):
        fitted(out=tmp_path / "cut", hooks=[stopped_at(11)], keep=3)
    folder = RunFolder(tmp_path / "cut")
    assert [file.name for file in folder.earlier_ones()] == [
        "delta-2.2.safetensors",
        "delta-2.1.safetensors",
    ]
    assert len(list(folder.last.parent.glob("state-*.pt"))) == 3
    state = folder.state("2.3")
    state.write_bytes(state.read_bytes()[:100])
    resumed = fitted(out=tmp_path / "cut", resume=True, keep=3)
    assert bits(resumed.model) == bits(whole.model)


# Features follow the plan


def test_each_phase_has_features_of_its_own_frost_line(tmp_path: Path) -> None:
    plain = fitted(precision="exact")
    run = fitted(precision="exact", features=tmp_path / "features", out=tmp_path / "run")
    assert bits(run.model) == bits(plain.model)
    assert figures(run) == figures(plain)
    lines = [line for line in run.says if line.startswith("Frost")]
    assert len(lines) == 3
    assert "neck" in lines[0]
    assert "body" in lines[1]
    assert RunSettings.read(tmp_path / "run" / "run.toml").features.forms == ("float32",) * 3


def test_a_phase_that_was_frozen_again_computes_features_with_its_new_weights(
    tmp_path: Path,
) -> None:
    run = fitted(precision="exact", features=tmp_path / "features")
    assert run.computed == 3 * (26 + 12)
    again = fitted(precision="exact", features=tmp_path / "features")
    assert again.computed == 0
    assert bits(again.model) == bits(run.model)


def test_what_each_phase_trains_and_costs_is_told_before_and_after_it() -> None:
    notes = Notes()
    fitted(hooks=[notes])
    told = [line for line in notes.lines if line.startswith("Phase")]
    assert told[0].startswith("Phase     1 of 3, head: trains 27 of ")
    assert all("the steps of a plain loop take about" in line for line in told)
    assert notes.lines[0].startswith("Plan      3 phases; the steps of a plain loop take about ")
    assert notes.lines[0].count(" + ") == 2
    assert sum("what was frozen did not move" in line for line in notes.lines) == 3


# Refused, or warned of


def test_epochs_beside_a_plan_are_refused() -> None:
    with pytest.raises(
        fl.ConfigError, match=r"a plan and epochs beside it\. Write the epochs into"
    ):
        fitted(epochs=3)


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    typo = fl.Plan([HEAD, fl.Phase(train="nek", epochs=1)])
    with pytest.raises(fl.SelectorError, match=r"phase 2: 'nek' matches no parameter"):
        fitted(plan=typo, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_warning_of_the_plan_is_told() -> None:
    notes = Notes()
    fitted(plan=fl.Plan([HEAD, HEAD]), hooks=[notes])
    assert any(line.startswith("Warning   phase 2 (head) trains the same") for line in notes.lines)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.neck, x, use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_trainable_layers_that_get_no_gradient_are_told_by_name() -> None:
    notes = Notes()
    fitted(Checkpointed(), plan=fl.Plan([fl.Phase(train="all", epochs=1)]), hooks=[notes])
    warned = [line for line in notes.lines if line.startswith("Warning")]
    assert len(warned) == 1
    assert "2 trainable tensors got no gradient from the first batch: neck.weight" in warned[0]
    assert "use_reentrant=False" in warned[0]


def test_a_record_of_a_run_without_a_plan_is_of_phase_one() -> None:
    model = net()
    fl.train_only(model, "head")
    run = fl.fit(model, rows(), rows(12, seed=2), epochs=1, device="cpu", features="off")
    assert isinstance(run.history[0], EpochRecord)
    assert [r.phase for r in run.phases] == [1]


def test_an_edited_plan_is_refused_on_a_resume_whatever_the_settings_say(tmp_path: Path) -> None:
    """As where run.toml was edited by hand: the deltas say by which plan they were trained."""
    out = tmp_path / "run"
    with pytest.raises(Stop):
        fitted(out=out, hooks=[stopped_at(9)])
    other = fl.Plan([HEAD.model_copy(update={"epochs": 3}), NECK, HEAD_AGAIN])
    settings = RunSettings.read(out / "run.toml")
    settings.model_copy(update={"plan": other.phases}).write(out / "run.toml")
    with pytest.raises(fl.ConfigError, match=r"cannot resume by another plan: .*delta"):
        fitted(plan=other, out=out, resume=True)


@pytest.mark.parametrize("plan", ["plan.toml", [HEAD]])
def test_what_is_no_plan_says_how_to_make_one(plan: object) -> None:
    with pytest.raises(fl.ConfigError, match=r"plan is a (str|list)\. Give a fl\.Plan: "):
        fitted(plan=plan)


def test_rows_that_stayed_are_in_the_proof_of_a_run() -> None:
    run = fitted(plan=fl.Plan([fl.Phase(freeze="rows:head.weight[0:1]", epochs=1)]))
    assert run.proof.tensors == 1


def test_rows_that_another_batch_size_gave_are_not_taken_where_bits_are_promised(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"features": tmp_path / "f", "plan": fl.Plan([HEAD])}
    assert fitted(**options, precision="exact").computed == 26 + 12
    assert fitted(**options, precision="exact").computed == 0
    assert fitted(**options, precision="exact", batch_size=4).computed == 26 + 12
