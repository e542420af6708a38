"""Runs that are trained for longer, and runs that begin with what another one learnt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.config import RunSettings
from frostline.runs import open_run, prepare
from small_world import call
from test_runs import StopAfter, World, metrics, weights


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished `run` of 3 epochs; copy it to go on with it."""
    made = World(tmp_path_factory.mktemp("going_on"))
    made.run()
    return made


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.root / "run", tmp_path / "run"))


def resumed(run: Path, epochs: int | None = None, *, stop: int | None = None) -> RunSettings:
    """Resume a run, as the command line does, and stop it after an epoch."""
    settings = open_run(run).settings
    training = settings.training
    if epochs is not None:
        training = training.model_copy(update={"epochs": epochs})
    hooks = [] if stop is None else [StopAfter(stop)]
    prepared = prepare(settings.model_copy(update={"training": training}))
    prepared.run(run, resume=True, hooks=hooks)
    return open_run(run).settings


def rates(run: Path) -> list[float]:
    return [line["lr"] for line in metrics(run)]


# Longer


def test_a_finished_run_goes_on_with_a_schedule_of_its_own(world: World, run: Path) -> None:
    before = metrics(run)
    settings = resumed(run, 5)
    assert [(p.label(n), p.epochs) for n, p in enumerate(settings.plan, 1)] == [
        ("phase 1", 3),
        ("longer", 2),
    ]
    assert metrics(run)[:3] == before
    assert rates(run)[2] < 0.1 * rates(run)[3] == pytest.approx(0.1 * 0.02)
    assert open_run(run).verify().tensors == 7
    # The very run, from its start: its settings say all of it.
    again = world.run("again", plan=settings.plan)
    assert weights(again) == weights(run)
    assert metrics(again) == metrics(run)


def test_a_kill_within_the_longer_part_is_resumed_to_the_same_bits(run: Path) -> None:
    whole = Path(shutil.copytree(run, run.with_name("whole")))
    resumed(whole, 6)
    for stop in (4, 5):
        with pytest.raises(KeyboardInterrupt):
            resumed(run, 6, stop=stop)
    assert not (run / "result.json").exists()
    resumed(run)
    assert weights(run) == weights(whole)
    assert weights(run, "best") == weights(whole, "best")
    assert metrics(run) == metrics(whole)


def test_a_stopped_run_follows_its_schedule_over_the_new_length(world: World) -> None:
    for out in ("cut", "cut-twice"):
        with pytest.raises(KeyboardInterrupt):
            world.run(out, stop=2)
    cut, twice = (world.root / name for name in ("cut", "cut-twice"))
    resumed(cut, 5)
    with pytest.raises(KeyboardInterrupt):
        resumed(twice, 5, stop=3)
    settings = resumed(twice)
    assert weights(twice) == weights(cut)
    assert metrics(twice) == metrics(cut)
    long, short = (rates(world.run(f"{n}-epochs", recipe={"epochs": n})) for n in (5, 3))
    assert rates(cut) == [*short[:2], *long[2:]]
    assert settings.length_changes == ("3 -> 5 after epoch 2",)
    assert "other numbers" in " ".join(open_run(cut).report().repeat_notes)


def test_a_length_is_changed_with_all_other_options_as_well_and_only_once(run: Path) -> None:
    settings = open_run(run).settings
    longer = settings.model_copy(
        update={"training": settings.training.model_copy(update={"epochs": 4})}
    )
    for _ in range(2):
        prepare(longer).run(run, resume=True)
        assert [line["epoch"] for line in metrics(run)] == [1, 2, 3, 4]


def test_the_command_line_trains_longer_and_says_how(run: Path) -> None:
    answer = call("train", "--resume", run, "--epochs", 4)
    assert answer.status == 0, answer.err
    told = " ".join(answer.out.split())
    assert "Length 3 epochs are done; 1 more go on from the last weights" in told
    assert "trains the same as" not in told
    assert "learning-rate schedule of their own" in (run / "report.html").read_text()
    words = ["Phase 1, phase 1: chosen by selector: frozen is features;", "Phase 2, longer"]
    assert all(word in " ".join(open_run(run).report().freezing) for word in words)


@pytest.mark.parametrize("epochs", [1, 2])
def test_fewer_epochs_than_were_done_are_refused_before_any_work(run: Path, epochs: int) -> None:
    before = (run / "run.toml").read_bytes()
    answer = call("train", "--resume", run, "--epochs", epochs)
    assert answer.status == 1
    assert f"cannot train for {epochs} epochs in all" in answer.message
    assert "has done 3 of 3" in " ".join(answer.message.split())
    assert "Data" not in answer.out
    assert (run / "run.toml").read_bytes() == before


PLAN = (fl.Phase(name="head", train="head", epochs=1), fl.Phase(train="middle | head", epochs=1))


def test_of_a_plan_the_last_phase_grows_or_goes_on(world: World) -> None:
    asked: dict[str, Any] = {"plan": PLAN, "freeze": {"freeze": None}}
    run = world.run("planned", **asked)
    settings = resumed(run, 4)
    assert settings.plan == (*PLAN, PLAN[1].model_copy(update={"name": "longer", "epochs": 2}))
    assert open_run(run).verify().tensors == 7
    with pytest.raises(KeyboardInterrupt):
        world.run("stopped", stop=1, **asked)
    settings = resumed(world.root / "stopped", 4)
    assert [phase.epochs for phase in settings.plan] == [1, 3]
    assert settings.length_changes == ()
    assert len(metrics(world.root / "stopped")) == 4


def test_a_phase_that_is_not_counted_in_epochs_cannot_be_told_to_grow(world: World) -> None:
    steps = (fl.Phase(train="head", steps=4),)
    run = world.run("steps", plan=steps, freeze={"freeze": None})
    answer = call("train", "--resume", run, "--epochs", 14)
    assert answer.status == 1
    told = " ".join(answer.message.split())
    assert "phase 1 of the plan" in told
    assert "is not counted in epochs" in told
    assert "--from" in told


# Longer, in Python


def python_run(out: Path, **options: Any) -> fl.Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    fl.freeze(model, "0")
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 4, generator=draw)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    return fl.fit(model, data, data, out=out, device="cpu", features="off", **options)


def test_more_epochs_or_phases_go_on_with_a_run_in_python(tmp_path: Path) -> None:
    python_run(tmp_path / "a", epochs=2)
    for _ in range(2):
        found = python_run(tmp_path / "a", epochs=3, resume=True)
        assert [record.phase for record in found.history] == [1, 1, 2]
    plan = fl.Plan([fl.Phase(epochs=2), fl.Phase(epochs=1)])
    python_run(tmp_path / "b", plan=fl.Plan(plan.phases[:1]))
    whole = python_run(tmp_path / "b", plan=plan, resume=True)
    assert [phase.epochs for phase in whole.phases] == [2, 1]
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    with pytest.raises(fl.ConfigError, match="the plan was"):
        python_run(tmp_path / "b", plan=fl.Plan([plan[1]]), resume=True)
