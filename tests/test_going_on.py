"""Runs that are trained for longer, and runs that begin with what another one learnt."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import frostline as fl
from frostline.config import RunSettings
from frostline.deltas import read_delta
from frostline.engine import Hook
from frostline.models import load_model
from frostline.runs import open_run, prepare
from small_world import Answer, call, write_picture
from test_runs import KILL_AT_RENAME, StopAfter, World, metrics, weights
from warm_process import Start


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
    assert "Length 4 epochs, of which 3 are done: the others go on from the last weights" in told
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


def python_run(out: Path, features: str | Path = "off", **options: Any) -> fl.Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    fl.freeze(model, "0")
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 4, generator=draw)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    return fl.fit(model, data, data, out=out, device="cpu", features=features, **options)


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


class Noting(Hook):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


def test_a_run_that_goes_on_with_features_kept_elsewhere_says_so(tmp_path: Path) -> None:
    kept, noting = tmp_path / "kept", Noting()
    python_run(tmp_path / "a", epochs=1, hooks=[noting])
    python_run(tmp_path / "a", kept, epochs=2, resume=True, hooks=[noting])
    said = [notice for notice in noting.notices if notice.startswith("Features")]
    assert f"Features  store {kept}, not off as before" == said[0]


# Another run's weights to begin with


class Grown:
    """A run of two classes, and the same pictures with another class and one picture more."""

    def __init__(self, root: Path) -> None:
        self.world = World(root)
        self.store = root / "store"
        self.run = root / "first"
        self.more = Path(shutil.copytree(self.world.photos, root / "more"))
        for part in ("train", "val"):
            for number in range(4):
                write_picture(self.more / part / "amber" / f"{number}.png", 120, seed=len(part))
        write_picture(self.more / "train" / "dark" / "new.png", 50, seed=7)
        answer = call("train", self.world.photos, "--model", self.world.model, "--out", self.run,
            "--weights", self.world.weights, "--train", "middle | head", "--features", self.store,
            "--precision", "exact", "--device", "cpu", "--batch-size", 6, "--lr", 0.02,
            "--epochs", 2)  # fmt: skip
        assert answer.status == 0, answer.err
        self.next = root / "next"
        self.answer = self.begin(self.next)
        assert self.answer.status == 0, self.answer.err

    def begin(self, out: Path, *options: object, data: Path | None = None) -> Answer:
        """A new run from the first one."""
        return call("train", data or self.more, "--from", self.run, "--out", out, *options)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Read it only."""
    return Grown(tmp_path_factory.mktemp("grown"))


def test_a_run_from_another_tells_what_changed(grown: Grown) -> None:
    told = " ".join(grown.answer.out.split())
    assert f"Start the best weights of {grown.run.resolve()}, of epoch " in told
    assert "Classes 2 -> 3; new amber, with fresh weights in the head" in told
    assert "Samples 33: 24 that it knew, 9 new" in told
    assert "Features 24 of 33 rows were in the store; 9 rows computed in" in told


def test_a_run_from_another_begins_with_its_best_weights_and_settings(grown: Grown) -> None:
    first, then = open_run(grown.run), open_run(grown.next)
    assert then.settings.training == first.settings.training
    assert then.settings.freeze == first.settings.freeze
    assert then.settings.preprocessing == first.settings.preprocessing
    assert then.settings.data.batch_size == 6
    assert then.settings.data.classes == ("amber", "dark", "light")
    best, start = (read_delta(run.folder.root / file).tensors for run, file in (
        (first, "best/delta.safetensors"), (then, "start.safetensors")))  # fmt: skip
    assert best.keys() == start.keys()
    for name in best.keys() - {"head.weight", "head.bias"}:
        assert torch.equal(best[name], start[name])
    for name in ("head.weight", "head.bias"):
        assert torch.equal(best[name], start[name][1:])
    fresh = load_model(grown.world.model, weights="none", classes=3).model.head
    assert torch.equal(start["head.weight"][0], fresh.weight[0])


def test_a_run_from_another_is_verified_evaluated_and_trained_longer(
    grown: Grown, tmp_path: Path
) -> None:
    for verb in (["verify", grown.next], ["evaluate", grown.next, grown.more, "--json"]):
        answer = call(*verb)
        assert answer.status == 0, answer.err
    found = json.loads((grown.next / "result.json").read_text())
    assert answer.json["accuracy"] == found["accuracy"]
    run = Path(shutil.copytree(grown.next, tmp_path / "run"))
    settings = resumed(run, 3)
    assert settings.plan[-1].epochs == 1
    assert open_run(run).verify().tensors == 7


def test_a_run_from_another_that_was_stopped_resumes_to_the_same_bits(
    grown: Grown, tmp_path: Path
) -> None:
    settings = open_run(grown.next).settings
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"classes": ()})}
    )
    start = open_run(grown.run).as_start()
    with pytest.raises(KeyboardInterrupt):
        prepare(settings, start=start).run(tmp_path / "run", hooks=[StopAfter(1)])
    answer = call("train", "--resume", tmp_path / "run")
    assert answer.status == 0, answer.err
    assert weights(tmp_path / "run") == weights(grown.next)


def test_its_report_says_how_to_train_it_again(grown: Grown, tmp_path: Path) -> None:
    report = open_run(grown.next).report()
    words = shlex.split(report.repeat.replace("\\\n", " "))
    assert words[words.index("--from") + 1] == str(grown.run.resolve())
    assert "start.safetensors" in " ".join(report.repeat_notes)
    again = [*words[1 : words.index("--out")], "--out", tmp_path / "again"]
    answer = call(*again)
    assert answer.status == 0, answer.err
    assert weights(tmp_path / "again") == weights(grown.next)


def test_what_only_the_first_run_trained_stays_as_it_left_it(grown: Grown, tmp_path: Path) -> None:
    """More is frozen than in the first run: the base is then its own, with what it began with."""
    run = tmp_path / "head"
    answer = grown.begin(run, "--train", "head", "--epochs", 1, data=grown.world.photos)
    assert answer.status == 0, answer.err
    assert "Classes the same 2" in " ".join(answer.out.split())
    assert open_run(run).verify().tensors == 14
    best = read_delta(grown.run / "best" / "delta.safetensors").tensors
    weight = open_run(run).loaded.model.middle[0].weight
    assert torch.equal(weight, best["middle.0.weight"])
    assert "start.safetensors" in call("verify", run).out
    start = run / "start.safetensors"
    kept = load_file(start)
    kept["middle.0.weight"] += 1
    with safe_open(start, framework="pt") as content:
        header = content.metadata()
    save_file(kept, start, metadata=header)
    assert call("verify", run).status == 3
    start.unlink()
    assert "began with. Restore it" in " ".join(call("verify", run).message.split())


def test_a_class_that_is_gone_is_left_out_and_told(grown: Grown, tmp_path: Path) -> None:
    data = Path(shutil.copytree(grown.more, tmp_path / "data"))
    for part in ("train", "val"):
        shutil.rmtree(data / part / "dark")
    answer = grown.begin(tmp_path / "run", data=data)
    told = " ".join(answer.out.split())
    assert "2 -> 2; new amber, with fresh weights in the head; gone dark, with their" in told
    assert "12 of its 24 are not here" in told
    start = read_delta(tmp_path / "run" / "start.safetensors").tensors["head.bias"]
    best = read_delta(grown.run / "best" / "delta.safetensors").tensors["head.bias"]
    assert start[1] == best[1]
    assert start[0] == 0


def test_pictures_that_the_first_run_was_trained_on_are_no_fair_judges(
    grown: Grown, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(grown.world.photos, tmp_path / "data"))
    shutil.copy(data / "train" / "dark" / "0.png", data / "val" / "dark" / "known.png")
    (data / "train" / "dark" / "0.png").unlink()
    answer = grown.begin(tmp_path / "run", "--epochs", 1, data=data)
    told = " ".join(answer.err.split())
    assert "1 of the 9 samples to validate on were trained on by" in told
    later = call("evaluate", tmp_path / "run", data)
    assert "1 of 9 pictures have the content of one that the run was" in " ".join(later.err.split())


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--model", "alexnet"], 2, "takes the model, head and task of that run"),
        (["--resume"], 2, "--resume goes on with the run's own settings; leave out --from"),
        (["--plan", "no.toml"], 1, "no.toml"),
    ],
)
def test_what_a_run_from_another_cannot_heed_is_refused(
    grown: Grown, tmp_path: Path, options: list[str], status: int, words: str
) -> None:
    answer = grown.begin(tmp_path / "run", *options)
    assert answer.status == status
    assert words in " ".join(answer.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_run_from_another_that_fails_before_its_first_epoch_leaves_nothing(
    grown: Grown, tmp_path: Path
) -> None:
    settings = open_run(grown.run).settings
    prepared = prepare(settings, start=open_run(grown.run).as_start())
    with pytest.raises(ValueError, match=r"^$"):
        prepared.run(tmp_path / "run", hooks=[StopAfter(0, ValueError)])
    assert not (tmp_path / "run").exists()


def test_a_classifier_that_was_kept_takes_no_other_classes(tmp_path: Path) -> None:
    world = World(tmp_path)
    for name in ("a", "b", "c"):
        for part in ("train", "val"):
            shutil.copytree(world.photos / part / "dark", world.photos / part / name)
    run = world.run(model={"on": "keep"}, recipe={"epochs": 1})
    more = Path(shutil.copytree(world.photos, tmp_path / "more"))
    for part in ("train", "val"):
        (more / part / "a").rename(more / part / "new")
    answer = call("train", more, "--from", run, "--out", tmp_path / "next")
    told = " ".join(answer.message.split())
    assert "kept the network's own classifier, whose classes stay as they are" in told
    assert "here they change: 5 -> 5; new new; gone a. Give the same classes" in told
    answer = call("train", world.photos, "--from", run, "--out", tmp_path / "same")
    assert answer.status == 0, answer.err
    assert "Classes the same 5" in " ".join(answer.out.split())


def test_a_run_that_patience_ended_goes_on_with_patience_anew(world: World) -> None:
    patient = {"patience": 1, "monitor": "loss", "epochs": 9, "lr": 4.0, "optimizer": "sgd"}
    run = world.run("patient", recipe=patient)
    done = len(metrics(run))
    assert done < 9
    with pytest.raises(KeyboardInterrupt):
        resumed(run, 10, stop=done + 1)
    settings = resumed(run, 12)
    assert [phase.epochs for phase in settings.plan] == [9, 12 - done]
    assert done < len(metrics(run))
    assert metrics(run)[done]["phase"] == 2


# The renames: run.toml, plan.toml; metrics, data; run.toml with a form; then states and deltas.
@pytest.mark.parametrize(
    ("number", "after"), [(1, False), (1, True), (2, True), (7, False), (8, True), (12, False)]
)
def test_a_run_killed_while_its_length_is_written_goes_on_to_the_same_bits(
    start: Start, world: World, run: Path, number: int, after: bool
) -> None:
    whole = world.root / "whole"
    if not whole.exists():
        resumed(Path(shutil.copytree(run, whole)), 5)
    code = (
        "from frostline.callbacks import saving; saving.SAVE_SECONDS = 0.0\n"
        f"{KILL_AT_RENAME.format(number=number, after=after)}"
    )
    killed = start(["train", "--resume", run, "--epochs", 5], dict(os.environ), code=code)
    assert killed.returncode == -9, killed.stderr
    resumed(run, 5)
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)
    assert (run / "plan.toml").read_bytes() == (whole / "plan.toml").read_bytes()
    assert open_run(run).settings == open_run(whole).settings
    assert open_run(run).verify().tensors == 7
