"""Run folders: what they hold, that they repeat, resume and prove, and survive being killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import frostline as fl
from frostline.config import DataSettings, FreezeSettings, ModelSettings, RunSettings
from frostline.deltas import read_delta
from frostline.engine import Hook, Training
from frostline.models import load_model
from frostline.recipe import Recipe
from frostline.runs import open_run, prepare
from small_world import call, without_sum, write_net, write_picture, write_pictures
from warm_process import Start


class StopAfter(Hook):
    """Ends the run at the end of an epoch; 0 is before the first."""

    def __init__(self, epoch: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.epoch = epoch
        self.error = error

    def on_start(self, training: Training) -> None:
        self.on_epoch(training)

    def on_epoch(self, training: Training) -> None:
        if training.position.epochs == self.epoch:
            raise self.error


class World:
    """Pictures, a network with a file of weights, and runs of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = write_pictures(root / "photos")
        self.model = write_net(root)
        self.weights = root / "weights.safetensors"
        loaded = load_model(self.model, weights="none", classes=5, on="keep", seed=3)
        save_file(loaded.model.state_dict(), self.weights)

    def settings(self, **changes: Any) -> RunSettings:
        recipe = {"epochs": 3, "lr": 0.02, **changes.pop("recipe", {})}
        model = {"name": self.model, "weights": str(self.weights), **changes.pop("model", {})}
        data = {"path": str(self.photos), "batch_size": 6, **changes.pop("data", {})}
        return RunSettings(
            model=ModelSettings(**model),
            data=DataSettings(**data),
            freeze=FreezeSettings(**{"freeze": "features", **changes.pop("freeze", {})}),
            training=Recipe(**recipe),
            device="cpu",
            **changes,
        )

    def run(
        self,
        out: str = "run",
        *,
        resume: bool = False,
        stop: int | None = None,
        error: type[BaseException] = KeyboardInterrupt,
        **changes: Any,
    ) -> Path:
        folder = self.root / out
        hooks = [] if stop is None else [StopAfter(stop, error)]
        prepare(self.settings(**changes)).run(folder, resume=resume, hooks=hooks)
        return folder


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished `run`; read it only."""
    made = World(tmp_path_factory.mktemp("world"))
    made.run()
    return made


@pytest.fixture
def spoiled(finished: World, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished.root / "run", tmp_path / "run"))


def metrics(run: Path) -> list[dict[str, float]]:
    """The figures of each epoch, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def weights(run: Path, which: str = "last") -> str:
    """The content hash of a delta."""
    with safe_open(run / which / "delta.safetensors", framework="pt") as content:
        return content.metadata()["content"]


def edit(file: Path, change: Callable[[str], str]) -> None:
    before = file.read_text()
    file.write_text(change(without_sum(before)))
    assert file.read_text() != before


# What a run folder holds


def test_a_run_folder_holds_what_it_says(finished: World) -> None:
    run = finished.root / "run"
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    curves = {name for name in files if name.startswith("tensorboard/events")}
    assert curves
    assert files - curves == {
        "run.toml",
        "frozen.json",
        "trained_on.txt",
        "validated_on.txt",
        "metrics.jsonl",
        "result.json",
        "data.json",
        "course.json",
        "best/predictions.safetensors",
        "report.html",
        "best/delta.safetensors",
        "last/delta.safetensors",
        "last/state-3.pt",
    }


def test_metrics_have_a_line_for_each_epoch(finished: World) -> None:
    found = metrics(finished.root / "run")
    assert [line["epoch"] for line in found] == [1, 2, 3]
    assert set(found[0]) == {
        *("epoch", "phase", "lr", "train_loss", "train_accuracy"),
        *("val_loss", "val_accuracy", "val_macro_f1", "best"),
    }


def test_a_result_is_that_of_the_best_epoch(finished: World) -> None:
    run = finished.root / "run"
    result = json.loads((run / "result.json").read_text())
    best = [line for line in metrics(run) if line["best"]][-1]
    assert result["epoch"] == best["epoch"]
    assert (result["accuracy"], result["loss"]) == (best["val_accuracy"], best["val_loss"])
    assert int(read_delta(run / "best/delta.safetensors").about["epoch"]) == best["epoch"]


def test_the_last_delta_is_that_of_the_last_epoch(finished: World) -> None:
    assert read_delta(finished.root / "run/last/delta.safetensors").about["epoch"] == "3"


def test_curves_can_be_read_by_tensorboard(finished: World) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(finished.root / "run/tensorboard"))
    curves.Reload()
    found = [scalar.value for scalar in curves.Scalars("val/loss")]
    assert found == pytest.approx([line["val_loss"] for line in metrics(finished.root / "run")])


def test_without_tensorboard_a_run_writes_no_curves_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.tensor([0, 1] * 4))
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    fl.freeze(model, "0")
    fl.fit(model, data, data, out=tmp_path / "run", epochs=1, features="off")
    assert (tmp_path / "run/metrics.jsonl").exists()
    assert not (tmp_path / "run/tensorboard").exists()
    assert capsys.readouterr() == ("", "")


def test_settings_are_read_as_they_were_written(finished: World) -> None:
    run = finished.root / "run"
    settings = RunSettings.read(run / "run.toml")
    settings.write(finished.root / "again.toml")
    assert RunSettings.read(finished.root / "again.toml") == settings
    assert settings.data.classes == ("dark", "light")
    assert settings.preprocessing == fl.Preprocessing(resize=16, crop=(16, 16))
    assert settings.model.head == "head"


def test_every_path_in_the_settings_is_absolute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    settings = world.settings(
        model={"name": "small_net.py:net", "weights": "weights.safetensors"},
        data={"path": "photos"},
    )
    found = prepare(settings).settings
    assert found.model.name == world.model
    assert found.model.weights == str(world.weights)
    assert found.data.path == str(world.photos)


def test_a_tilde_stands_for_the_home_folder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(world.root))
    settings = world.settings(model={"weights": "~/weights.safetensors"}, data={"path": "~/photos"})
    found = prepare(settings).settings
    assert (found.model.weights, found.data.path) == (str(world.weights), str(world.photos))


def test_a_run_repeated_from_its_settings_gives_the_same_numbers(finished: World) -> None:
    run = finished.root / "run"
    again = finished.root / "repeated"
    prepare(RunSettings.read(run / "run.toml")).run(again)
    assert metrics(again) == metrics(run)
    assert weights(again) == weights(run)
    assert weights(again, "best") == weights(run, "best")


# A finished run, opened again


@pytest.mark.parametrize("changes", [{}, {"recipe": {"precision": "bf16"}}], ids=["fp32", "bf16"])
def test_evaluating_gives_exactly_the_figures_of_training(
    world: World, changes: dict[str, Any]
) -> None:
    run = world.run(**changes)
    opened = open_run(run)
    found = opened.evaluate(opened.held_out(world.photos).samples, device="cpu").as_dict()
    result = json.loads((run / "result.json").read_text())
    assert json.loads(json.dumps(found)) == {key: result[key] for key in found}


def test_norms_that_adapt_are_evaluated_with_the_statistics_they_took(world: World) -> None:
    run = world.run(freeze={"norm": "adapt"})
    opened = open_run(run)
    found = opened.evaluate(opened.held_out(world.photos).samples, device="cpu")
    assert found.loss == json.loads((run / "result.json").read_text())["loss"]
    assert "features.1.running_mean" in read_delta(run / "best" / "delta.safetensors").tensors
    assert opened.verify().tensors == 4


def test_the_held_out_part_of_an_undivided_folder_is_what_evaluate_takes(world: World) -> None:
    flat = world.photos / "train"
    run = world.run(data={"path": str(flat), "val_fraction": 0.25})
    opened = open_run(run)
    held = opened.held_out(flat)
    assert len(held.samples) == 4
    assert held.notes == ()
    found = opened.evaluate(held.samples, device="cpu")
    result = json.loads((run / "result.json").read_text())
    assert (found.loss, found.accuracy) == (result["loss"], result["accuracy"])


def test_a_part_drawn_among_what_can_be_read_is_drawn_so_by_evaluate(world: World) -> None:
    flat = world.photos / "train"
    for name in ("0.png", "1.png", "2.png"):
        (flat / "dark" / name).write_bytes(b"no picture")
    run = world.run(data={"path": str(flat), "val_fraction": 0.4})
    held = open_run(run).held_out(flat)
    assert (len(held.samples), held.notes) == (5, ())
    found = open_run(run).evaluate(held.samples, device="cpu")
    assert found.loss == json.loads((run / "result.json").read_text())["loss"]
    assert metrics(world.run(resume=True, data={"path": str(flat), "val_fraction": 0.4}))


def test_the_columns_of_a_table_are_kept_for_resume_and_evaluate(world: World) -> None:
    table = world.root / "labels.csv"
    pictures = sorted((world.photos / "train").rglob("*.png"))
    rows = [
        f"{path.relative_to(world.root)},{path.parent.name},{path.stem > '5'}" for path in pictures
    ]
    table.write_text("\n".join(["Image,dx,is_test", *rows]))
    columns = ("--file-column", "image", "--label-column", "dx", "--split-column", "is_test")
    out = world.root / "run"
    arguments = ("--model", world.model, "--weights", "none", "--epochs", 1, "--batch-size", 6)
    answer = call("train", table, *arguments, *columns, "--out", out)
    assert answer.status == 0, answer.err
    assert "the is_test column of labels.csv; 2 classes: dark, light" in answer.out
    assert call("train", "--resume", out).status == 0
    result = json.loads((out / "result.json").read_text())
    assert call("evaluate", out, table, "--json").json["loss"] == result["loss"]
    other = world.root / "other.csv"
    other.write_text(table.read_text().replace("Image,dx", "file,label"))
    assert "no column image and no column dx; it has file" in call("evaluate", out, other).message
    found = call(
        "evaluate", out, other, *columns[4:], "--file-column=file", "--label-column=label", "--json"
    )
    assert found.json["loss"] == result["loss"]


def test_pictures_that_were_trained_on_are_counted_in_other_data(finished: World) -> None:
    held = open_run(finished.root / "run").held_out(finished.photos / "train")
    assert len(held.samples) == 16
    assert "16 of 16 pictures have the content of one that the run was trained on" in held.notes[0]


def test_pictures_that_chose_the_epoch_are_counted_among_new_ones(
    finished: World, tmp_path: Path
) -> None:
    shutil.copytree(finished.photos / "val", tmp_path / "test")
    first = next((tmp_path / "test").rglob("*.png"))
    ImageOps.invert(Image.open(first).convert("RGB")).save(first.with_name("new.png"))
    held = open_run(finished.root / "run").held_out(tmp_path / "test")
    count = len(held.samples)
    assert (
        f"{count - 1} of {count} pictures have the content of one that the run's epoch"
        in (held.notes[0])
    )


def test_a_run_works_from_any_folder(finished: World, tmp_path: Path) -> None:
    moved = shutil.copytree(finished.root / "run", tmp_path / "elsewhere")
    opened = open_run(moved)
    assert opened.verify().tensors == 7
    picture = next((finished.photos / "val" / "dark").iterdir())
    assert opened.predict([picture], device="cpu")[0].file == str(picture)


def test_moved_data_are_evaluated_where_they_are_now(world: World) -> None:
    run = world.run()
    before = json.loads((run / "result.json").read_text())
    moved = world.photos.rename(world.root / "moved")
    opened = open_run(run)
    found = opened.evaluate(opened.held_out(moved).samples, device="cpu")
    assert (found.loss, found.accuracy) == (before["loss"], before["accuracy"])


def test_the_preprocessing_is_that_of_training_whatever_the_file_says_now(world: World) -> None:
    run = world.run()
    edit(world.root / "small_net.py", lambda text: text.replace("crop=(16, 16)", "crop=(8, 8)"))
    assert open_run(run).loaded.preprocessing.crop == (16, 16)


def test_a_base_from_elsewhere_is_resumed_with_the_preprocessing_of_training(world: World) -> None:
    settings = open_run(world.run()).settings
    edit(world.root / "small_net.py", lambda text: text.replace("crop=(16, 16)", "crop=(8, 8)"))
    moved = world.weights.rename(world.root / "moved.safetensors")
    prepared = prepare(settings, weights=str(moved))
    assert prepared.loaded.preprocessing.crop == (16, 16)
    assert prepared.settings == settings


def test_moved_weights_say_where_they_were(world: World) -> None:
    run = world.run()
    (world.root / "far").mkdir()
    moved = world.weights.rename(world.root / "far" / "moved.safetensors")
    with pytest.raises(fl.WeightsError, match=r"no longer at .*weights\.safetensors, and no file"):
        _ = open_run(run).loaded
    assert open_run(run, weights=moved).verify().tensors == 7


def test_weights_that_were_moved_beside_the_run_are_found_by_their_content(world: World) -> None:
    run = world.run()
    moved = world.weights.rename(world.root / "moved.safetensors")
    save_file({"other": torch.zeros(1)}, world.weights.with_name("a.safetensors"))
    assert open_run(run).base_weights == str(moved)
    assert open_run(run).verify().tensors == 7


def test_other_weights_are_refused_for_prediction(world: World) -> None:
    run = world.run()
    loaded = load_model(world.model, weights="none", classes=5, on="keep", seed=4)
    save_file(loaded.model.state_dict(), world.weights)
    with pytest.raises((fl.DriftError, fl.DeltaError), match=r"content has changed|another base"):
        _ = open_run(run).loaded


def test_predictions_are_probabilities_best_first(finished: World) -> None:
    files = sorted((finished.photos / "val").rglob("*.png"))
    found = open_run(finished.root / "run").predict(files, top=5, device="cpu")
    assert [p.file for p in found] == list(map(str, files))
    for prediction in found:
        shares = [share for _, share in prediction.classes]
        assert len(shares) == 2
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1.0)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fl.ConfigError, match=r"there is no folder .*nowhere"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(fl.ConfigError, match=r"is no run: it has no run\.toml"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 3", "epochs = 0", r"training\.epochs=0: input should be greater than"),
        ("epochs = 3", "epochs = 3\nwarp = 9", r"there is no option 'training\.warp'"),
        ("[model]", "[modell]", r"the option 'model' is missing"),
        ("[model]", "[model", r"run\.toml cannot be read: "),
    ],
)
def test_damaged_settings_say_what_is_wrong_and_where(
    spoiled: Path, old: str, new: str, message: str
) -> None:
    edit(spoiled / "run.toml", lambda text: text.replace(old, new))
    with pytest.raises(fl.ConfigError, match=message) as caught:
        open_run(spoiled)
    assert str(spoiled / "run.toml") in str(caught.value)


def test_a_new_head_that_would_stay_frozen_is_refused(world: World) -> None:
    for freeze in ({"freeze": "head | features"}, {"freeze": None, "train": "middle"}):
        with pytest.raises(
            fl.FreezeError,
            match=r"the new head at head would stay frozen at its random start\. Train it too: "
            r"train='\.\.\. \| head', or leave it out of `freeze`",
        ):
            prepare(world.settings(freeze=freeze))


def test_a_head_that_is_kept_may_stay_frozen(world: World) -> None:
    names = ("a", "b", "c", "d", "e")
    photos = write_pictures(world.root / "five", names=names, train=1, val=1)
    changes = {"model": {"on": "keep"}, "data": {"path": str(photos)}}
    found = prepare(world.settings(freeze={"freeze": "head"}, **changes))
    assert found.frozen.names == ("head.weight", "head.bias")


# New runs and resumed ones


def test_an_existing_run_is_not_overwritten(finished: World) -> None:
    before = {p: p.read_bytes() for p in (finished.root / "run").rglob("*") if p.is_file()}
    with pytest.raises(
        fl.OutputError, match=r"already holds a run; nothing was overwritten\. resume=True"
    ):
        finished.run()
    assert {p: p.read_bytes() for p in before} == before


def test_a_folder_with_something_in_it_is_not_written_to(world: World) -> None:
    (world.root / "run").mkdir()
    (world.root / "run" / "thesis.txt").write_text("")
    with pytest.raises(fl.OutputError, match=r"already holds something; nothing was overwritten"):
        world.run()


def test_what_failed_before_its_first_epoch_leaves_only_what_is_not_its_own(world: World) -> None:
    class Noting(Hook):
        def on_start(self, training: Training) -> None:  # noqa: ARG002 - the hook's signature
            (world.root / "run" / "thesis.txt").write_text("mine")
            raise MemoryError

    with pytest.raises(MemoryError):
        prepare(world.settings()).run(world.root / "run", hooks=[Noting()])
    assert [p.name for p in (world.root / "run").iterdir()] == ["thesis.txt"]


def test_what_failed_after_an_epoch_is_kept(world: World) -> None:
    with pytest.raises(MemoryError):
        world.run(stop=1, error=MemoryError)
    assert weights(world.root / "run", "best")
    with pytest.raises(
        fl.OutputError, match=r"already holds a run; .* resume=True goes on with it"
    ):
        world.run()


def test_a_failing_resume_keeps_the_run_that_it_was_to_go_on_with(world: World) -> None:
    for resume, error in ((False, KeyboardInterrupt), (True, MemoryError)):
        with pytest.raises(error):
            world.run(stop=0, error=error, resume=resume)
        assert (world.root / "run" / "run.toml").is_file()
    world.run(resume=True)


@pytest.mark.parametrize(
    "file", ["best/delta.safetensors", "last/state-3.pt", "metrics.jsonl", "result.json"]
)
def test_a_folder_with_anything_trained_is_never_cleared(tmp_path: Path, file: str) -> None:
    from frostline.records import RunFolder

    (tmp_path / "last").mkdir()
    (tmp_path / "best").mkdir()
    for name in ("run.toml", "last/state-0.pt", "last/delta.safetensors", file):
        (tmp_path / name).write_text("something")
    before = sorted(tmp_path.rglob("*"))
    RunFolder(tmp_path).discard_start()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_folder_of_one_that_is_going_is_refused(
    world: World, resume: bool
) -> None:
    refused: list[str] = []

    class Second(Hook):
        def on_epoch(self, training: Training) -> None:
            if training.position.epochs == 1:
                with pytest.raises(fl.OutputError) as caught:
                    world.run(resume=resume)
                refused.append(str(caught.value))
                new = [world.photos, "--model", world.model, "--out"]
                how = ["--resume"] if resume else new
                refused.append(call("train", *how, out).message)

    out = world.root / "run"
    prepare(world.settings()).run(out, hooks=[Second()])
    assert len(refused) == 2
    assert all("a run is going in" in text and "Wait for its end" in text for text in refused)
    assert len(metrics(out)) == 3
    assert not (out / "run.lock").exists()
    assert weights(out) == weights(world.run("alone"))


def test_of_two_runs_that_begin_in_one_folder_at_once_only_one_goes_on(world: World) -> None:
    """The second looked before the first began, and comes to the folder when it has ended."""

    class First(Hook):
        def on_notice(self, text: str, /) -> None:  # noqa: ARG002 - the hook's signature
            if not (world.root / "run").exists():
                world.run(recipe={"epochs": 1})

    plan = (fl.Phase(train="head", epochs=1),)
    late = world.settings(plan=plan, freeze={"freeze": None}, recipe={"patience": 3})
    prepared = prepare(late)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fl.Plan, "check", lambda *_, **__: ("a warning",))
        with pytest.raises(fl.OutputError, match="already holds a run; nothing was overwritten"):
            prepared.run(world.root / "run", hooks=[First()])
    assert open_run(world.root / "run").verify().tensors == 7


def test_a_lock_that_a_killed_run_left_stops_no_one(world: World) -> None:
    (world.root / "run").mkdir()
    (world.root / "run" / "run.lock").touch()
    assert (world.run(recipe={"epochs": 1}) / "result.json").is_file()


def test_where_a_file_system_has_no_locks_a_run_goes_on_without(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("frostline.records.folder.lock", without)
    assert (world.run(recipe={"epochs": 1}) / "result.json").is_file()


def test_a_run_that_is_going_can_be_read(world: World) -> None:
    read: list[float] = []

    class Reader(Hook):
        def on_epoch(self, training: Training) -> None:  # noqa: ARG002 - the hook's signature
            run = open_run(out)
            read.append(run.evaluate(run.held_out(world.photos).samples).loss)
            assert run.verify().tensors == 7
            assert run.report().records.epochs

    out = world.root / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frostline.callbacks.saving.SAVE_SECONDS", 0.0)
        patch.setattr("frostline.callbacks.saving._SHARE_OF_TIME", 0)
        prepare(world.settings()).run(out, hooks=[Reader()])
    assert len(read) == 3


def test_an_empty_folder_may_be_written_to(world: World) -> None:
    (world.root / "run").mkdir()
    assert (world.run(recipe={"epochs": 1}) / "result.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe": {"lr": 0.5, "momentum": 0.5}},
            r"training\.lr was 0.02 and is 0.5; training\.momentum was",
        ),
        ({"data": {"batch_size": 3}}, r"data\.batch_size was 6 and is 3"),
        ({"freeze": {"freeze": "features | middle"}}, r"freeze\.freeze was 'features' and is 'fe"),
        ({"model": {"weights": "none"}}, r"model\.weights was '.*' and is 'none'"),
        ({"model": {"hidden": (4,)}}, r"model\.hidden was \(\) and is \(4,\)"),
    ],
)
def test_other_settings_are_refused_by_name_on_a_resume(
    finished: World, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(fl.ConfigError, match=rf"cannot resume with other settings: .*{message}"):
        finished.run(resume=True, **changes)


NUMBERED = ("0", "1", "2", "10", "11")
AS_TEXT = tuple(sorted(NUMBERED))


@pytest.fixture
def numbered(tmp_path: Path) -> World:
    made = World(tmp_path)
    shutil.rmtree(made.photos)
    write_pictures(made.photos, names=NUMBERED, train=2, val=2)
    return made


def test_numbered_classes_are_those_of_a_kept_classifier(numbered: World) -> None:
    kept = numbered.settings(model={"on": "keep"})
    prepared = prepare(kept)
    assert prepared.data.splits.train.classes == NUMBERED
    assert prepared.mapping.startswith(
        "of the kept classifier in the order of the data's names: logit 0"
    )
    options = ["--model", numbered.model, "--weights", numbered.weights, "--on", "keep"]
    options += ["--epochs", 1, "--freeze", "features", "--out", numbered.root / "run"]
    answer = call("train", numbered.photos, *options)
    assert "Classes  of the kept classifier" in answer.out
    assert "2 is 2, 3 is 10" in " ".join(answer.out.split())


@pytest.mark.parametrize("how", ["alone", "with its options"])
def test_a_run_of_before_keeps_the_order_of_its_classes(numbered: World, how: str) -> None:
    changes = {"data": {"classes": AS_TEXT}, "model": {"weights": "none"}}
    whole = numbered.run("whole", **changes)
    out = numbered.root / "run"
    with pytest.raises(KeyboardInterrupt):
        numbered.run(stop=1, **changes)
    assert open_run(out).settings.data.classes == AS_TEXT
    options = [numbered.photos, "--model", numbered.model, "--weights", "none", "--epochs", 3]
    options += ["--freeze", "features", "--lr", 0.02, "--batch-size", 6, "--out"]
    answer = call("train", "--resume", *([] if how == "alone" else options), out)
    assert answer.status == 0, answer.err
    assert weights(out) == weights(whole)
    run = open_run(out)
    found = run.evaluate(run.held_out(numbered.photos).samples)
    assert found.loss == json.loads((out / "result.json").read_text())["loss"]


@pytest.mark.parametrize(("part", "called"), [("train", "training"), ("val", "validation")])
def test_a_changed_picture_is_refused_on_a_resume(world: World, part: str, called: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=1)
    write_picture(world.photos / part / "dark" / "0.png", 90, seed=99)
    told = rf"cannot resume: the {called} pictures in .*photos are not those that .*run began with"
    with pytest.raises(fl.ConfigError, match=told):
        world.run(resume=True)


def test_a_picture_of_another_class_is_refused_on_a_resume(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=1)
    first, *others = sorted((world.photos / "train").iterdir())
    picture = first / "0.png"
    picture.rename(others[0] / f"from-{first.name}.png")
    with pytest.raises(fl.ConfigError, match=r"cannot resume: the labels, targets or masks in"):
        world.run(resume=True)


def test_a_changed_weights_file_is_refused_on_a_resume(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=1)
    loaded = load_model(world.model, weights="none", classes=5, on="keep", seed=4)
    save_file(loaded.model.state_dict(), world.weights)
    with pytest.raises(fl.ConfigError, match=r"model\.weights_digest was"):
        world.run(resume=True)


def test_a_resume_without_a_run_says_so(world: World) -> None:
    with pytest.raises(fl.ConfigError, match=r"there is no folder .*run"):
        world.run(resume=True)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 cut"])
def test_a_damaged_state_says_what_is_kept(world: World, content: bytes) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=2)
    (world.root / "run" / "last" / "state-2.pt").write_bytes(content)
    with pytest.raises(fl.ConfigError, match=r"cannot resume: .*state-2\.pt is missing or damaged"):
        world.run(resume=True)


def test_a_missing_state_says_what_is_kept(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=2)
    (world.root / "run" / "last" / "state-2.pt").unlink()
    with pytest.raises(fl.ConfigError, match=r"state-2\.pt is missing or damaged .*best"):
        world.run(resume=True)


def test_a_flipped_bit_in_the_largest_record_of_a_state_is_never_resumed_from(
    world: World,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=2)
    state = world.root / "run" / "last" / "state-2.pt"
    flip_in_largest_record(state)
    answer = call("train", "--resume", world.root / "run")
    assert answer.status == 1
    assert "state-2.pt is missing or damaged (its checksum is not that of its" in answer.message


def test_a_state_of_before_is_read_and_checked_by_the_sums_of_its_zip(world: World) -> None:
    whole = weights(world.run("whole"))
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=2)
    state = world.root / "run" / "last" / "state-2.pt"
    content = state.read_bytes()
    state.write_bytes(content[: content.rindex(b"\n# checksum ")])
    older = Path(shutil.copytree(world.root / "run", world.root / "older"))
    flip_in_largest_record(state)
    with pytest.raises(
        fl.ConfigError, match=r"damaged \(the checksum of .*data/\d+ is not that of"
    ):
        world.run(resume=True)
    world.run("older", resume=True)
    assert weights(older) == whole


def flip_in_largest_record(state: Path) -> None:
    """One bit in the exponent of one float."""
    content = bytearray(state.read_bytes())
    with zipfile.ZipFile(state) as records:
        tensors = [record for record in records.infolist() if "/data/" in record.filename]
        largest = max(tensors, key=lambda record: record.file_size)
        data = records.read(largest)
    content[content.index(data) + 3] ^= 1 << 4
    state.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("run.toml", "run.toml cannot be read: its checksum is not that of its content"),
        ("frozen.json", "frozen.json is missing or damaged (its checksum is not that"),
        ("trained_on.txt", "trained_on.txt is damaged (its checksum is not that of"),
        ("validated_on.txt", "validated_on.txt is damaged (its checksum is not that"),
        ("last/delta.safetensors", "delta.safetensors is damaged: "),
    ],
)
def test_another_digit_in_a_file_that_a_resume_reads_is_told(
    finished: World, tmp_path: Path, name: str, told: str
) -> None:
    """The first 1 that may be a 3 by one bit: of a learning rate, a digest, a position."""
    run = Path(shutil.copytree(finished.root / "run", tmp_path / "run"))
    content = (run / name).read_bytes()
    assert content.count(b"1")
    (run / name).write_bytes(content.replace(b"1", b"3", 1))
    answer = call("train", "--resume", run)
    assert answer.status in (1, 3)
    assert told in answer.message


def test_notes_of_a_delta_are_covered_by_its_checksum(spoiled: Path) -> None:
    file = spoiled / "best" / "delta.safetensors"
    content = file.read_bytes()
    assert content.count(rb"\"phase\": \"1\"") == 1
    file.write_bytes(content.replace(rb"\"phase\": \"1\"", rb"\"phase\": \"3\""))
    with pytest.raises(fl.CorruptDelta, match="its header is not the one that was written"):
        open_run(spoiled).verify()


@pytest.mark.parametrize("name", ["result.json", "data.json", "course.json"])
def test_another_digit_in_what_a_report_reads_is_told_on_it(spoiled: Path, name: str) -> None:
    content = (spoiled / name).read_bytes()
    (spoiled / name).write_bytes(content.replace(b"1", b"3", 1))
    lacks = open_run(spoiled).report().records.lacks
    assert [line for line in lacks if f"{name} is damaged (its checksum is not" in line]


def test_settings_changed_by_hand_are_read_once_their_checksum_is_deleted(spoiled: Path) -> None:
    text = (spoiled / "run.toml").read_text()
    (spoiled / "run.toml").write_text(text.replace("epochs = 3", "epochs = 4"))
    with pytest.raises(fl.ConfigError, match="if you changed it by hand, delete its last line"):
        open_run(spoiled)
    edit(spoiled / "run.toml", lambda text: text)
    assert open_run(spoiled).settings.training.epochs == 4


def test_metrics_of_a_resumed_run_have_no_line_twice(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=2)
    edit(world.root / "run" / "metrics.jsonl", lambda text: text + text.splitlines()[-1] + "\n")
    world.run(resume=True)
    assert [line["epoch"] for line in metrics(world.root / "run")] == [1, 2, 3]


# Verify


def drift(run: Path) -> fl.DriftError:
    with pytest.raises(fl.DriftError) as caught:
        open_run(run).verify()
    assert caught.value.exit_status == 3
    return caught.value


def test_a_finished_run_verifies(finished: World) -> None:
    verdict = open_run(finished.root / "run").verify()
    assert verdict.tensors == 7
    assert len(verdict.checks) == 3


def test_a_run_with_trainable_norms_verifies(world: World) -> None:
    run = world.run(freeze={"freeze": None, "train": "kind:norm | head"}, recipe={"epochs": 1})
    assert open_run(run).verify().tensors > 0


def test_a_flipped_bit_in_the_weights_file_is_found_by_its_tensor(world: World) -> None:
    run = world.run(recipe={"epochs": 1})
    tensors = load_file(world.weights)
    bits = tensors["features.0.weight"].view(torch.int32)
    bits[0, 0, 0, 0] ^= 1
    save_file(tensors, world.weights)
    assert "features.0.weight" in str(drift(run))
    assert "1 frozen tensors" in str(drift(run))


@pytest.mark.parametrize("place", [-3, 9])
def test_any_flipped_bit_in_the_weights_file_is_drift(world: World, place: int) -> None:
    run = world.run(recipe={"epochs": 1})
    content = bytearray(world.weights.read_bytes())
    content[place] ^= 1
    world.weights.write_bytes(content)
    drift(run)


def test_a_changed_digest_in_frozen_json_is_found_by_its_tensor(spoiled: Path) -> None:
    def flip(text: str) -> str:
        digests = json.loads(text)["tensors"]
        digests["features.1.running_var"] = "f" * 32
        return json.dumps({"tensors": digests})

    edit(spoiled / "frozen.json", flip)
    assert "features.1.running_var" in str(drift(spoiled))


def test_a_tensor_left_out_of_frozen_json_is_found(spoiled: Path) -> None:
    def drop(text: str) -> str:
        digests = json.loads(text)["tensors"]
        del digests["features.0.bias"]
        return json.dumps({"tensors": digests})

    edit(spoiled / "frozen.json", drop)
    assert "features.0.bias" in str(drift(spoiled))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tensors": [1]}', '{"tensors": 3}'])
def test_a_damaged_frozen_json_says_that_nothing_can_be_proven(spoiled: Path, text: str) -> None:
    (spoiled / "frozen.json").write_text(text)
    with pytest.raises(fl.ConfigError, match=r"frozen\.json is missing or damaged"):
        open_run(spoiled).verify()


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_frozen_tensor_in_a_delta_is_found(finished: World, spoiled: Path, which: str) -> None:
    file = spoiled / which / "delta.safetensors"
    model = open_run(finished.root / "run").loaded.model
    fl.thaw(model, "features.0")
    fl.save_delta(model, file, about={"epoch": "1"})
    assert "holds tensors that were to stay frozen" in str(drift(spoiled))
    assert "features.0.weight" in str(drift(spoiled))


def test_a_delta_saved_beside_another_frozen_tensor_is_found(
    finished: World, spoiled: Path
) -> None:
    model = open_run(finished.root / "run").loaded.model
    with torch.no_grad():
        model.get_parameter("features.0.weight")[0] += 1
    fl.freeze(model, "features.0.weight")  # as it is now, or the delta would be refused
    fl.save_delta(model, spoiled / "last" / "delta.safetensors", about={"epoch": "3"})
    assert "features.0.weight" in str(drift(spoiled))


def test_a_flipped_bit_in_a_delta_is_found(spoiled: Path) -> None:
    file = spoiled / "best" / "delta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(fl.DeltaError, match=r"best/delta\.safetensors is damaged"):
        open_run(spoiled).verify()


def test_a_frozen_tensor_that_moves_in_training_is_drift_and_what_was_trained_is_kept(
    world: World,
) -> None:
    class Meddling(Hook):
        def on_epoch(self, training: Training) -> None:
            with torch.no_grad():
                training.model.get_parameter("features.0.weight")[0] += 1e-3

    with pytest.raises(fl.DriftError, match=r"features\.0\.weight: moved by "):
        prepare(world.settings()).run(world.root / "run", hooks=[Meddling()])
    assert (world.root / "run" / "last" / "delta.safetensors").is_file()


# A model that was made in Python


def python_run(root: Path, *, epochs: int = 2, resume: bool = False, stop: int = 0) -> fl.Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fl.freeze(model, "0 | 1")
    inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    hooks = [StopAfter(stop)] if stop else []
    return fl.fit(
        model, data, data, out=root / "run", epochs=epochs, resume=resume, hooks=hooks, device="cpu"
    )


def test_a_run_of_a_python_model_is_loaded_in_python(tmp_path: Path) -> None:
    run = python_run(tmp_path)
    assert run.folder is not None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fl.load_delta(model, run.folder.best)
    assert fl.fingerprint(model) == fl.fingerprint(run.model)


def test_a_run_of_a_python_model_cannot_be_built_and_says_how_to_load_it(tmp_path: Path) -> None:
    python_run(tmp_path)
    with pytest.raises(fl.ConfigError, match=r"handed over in Python.*fl\.load_delta\(model, '.*'"):
        _ = open_run(tmp_path / "run").loaded


def test_the_proof_of_a_python_model_says_what_it_does_not_prove(tmp_path: Path) -> None:
    python_run(tmp_path)
    verdict = open_run(tmp_path / "run").verify()
    assert "the base itself was handed over in Python" in verdict.checks[-1]


def test_a_run_of_a_python_model_is_resumed_in_python(tmp_path: Path) -> None:
    whole = python_run(tmp_path / "whole", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        python_run(tmp_path, epochs=3, stop=1)
    resumed = python_run(tmp_path, epochs=3, resume=True)
    assert fl.fingerprint(resumed.model) == fl.fingerprint(whole.model)


def test_another_frozen_part_is_refused_on_a_resume(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        python_run(tmp_path, stop=1)

    def rename(text: str) -> str:
        digests = json.loads(text)["tensors"]
        return json.dumps({"tensors": {**digests, "0.bios": digests.pop("0.bias")}})

    edit(tmp_path / "run" / "frozen.json", rename)
    with pytest.raises(fl.DriftError, match=r"cannot resume: the frozen part is not what"):
        python_run(tmp_path, resume=True)


def test_nothing_is_left_behind_where_no_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    data = [(torch.randn(6, 4), torch.tensor([0, 1] * 3))]
    assert fl.fit(model, data, data, epochs=1, device="cpu").folder is None
    assert not list(tmp_path.iterdir())


def test_a_resume_needs_a_folder() -> None:
    model = nn.Linear(4, 2)
    data = [(torch.randn(6, 4), torch.tensor([0, 1] * 3))]
    with pytest.raises(fl.ConfigError, match=r"resume needs the run's folder\. Give it as `out`"):
        fl.fit(model, data, data, resume=True, device="cpu")


# Killed

# Ends the process at the N-th rename, of which each whole file is one: nothing is flushed, no
# `finally` runs.
KILL_AT_RENAME = """
import os, pathlib, signal
count, whole = 0, pathlib.Path.replace
def replace(path, target):
    global count
    count += 1
    if count == {number}:
        if {after}:
            whole(path, target)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(path, target)
pathlib.Path.replace = replace
"""


@pytest.mark.parametrize(
    ("number", "after", "save_seconds"),
    # The renames of a run: run.toml, frozen.json; metrics, trained_on, validated_on; run.toml with
    # the form; then, where it is saved, best if there is a new one, state, last.
    [
        (1, True, 0.0),
        (2, True, 0.0),
        (5, True, 5.0),
        (7, True, 0.0),
        (8, True, 0.0),
        (8, True, 5.0),
        (9, False, 0.0),
        (10, True, 0.0),
    ],
)
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(
    start: Start,
    finished: World,
    tmp_path: Path,
    number: int,
    after: bool,
    save_seconds: float,
) -> None:
    out = tmp_path / "run"
    arguments = ["train", finished.photos, "--model", finished.model, "--out", out]
    arguments += ["--weights", finished.weights, "--freeze", "features", "--batch-size", 6]
    arguments += ["--epochs", 3, "--lr", 0.02, "--device", "cpu"]
    code = (
        f"from frostline.callbacks import saving; saving.SAVE_SECONDS = {save_seconds}\n"
        f"{KILL_AT_RENAME.format(number=number, after=after)}"
    )
    killed = start(arguments, dict(os.environ), code=code)
    assert killed.returncode == -9, killed.stderr
    if (out / "last" / "delta.safetensors").exists():
        read_delta(out / "last" / "delta.safetensors")
    prepare(open_run(out).settings).run(out, resume=True)
    assert weights(out) == weights(finished.root / "run")
    assert weights(out, "best") == weights(finished.root / "run", "best")
    assert metrics(out) == metrics(finished.root / "run")
    assert open_run(out).verify().tensors == 7


def test_a_folder_with_the_beginning_of_a_killed_runs_first_file_may_be_written_to(
    world: World,
) -> None:
    (world.root / "run").mkdir()
    (world.root / "run" / ".run.toml.x1.tmp").write_text("fros")
    assert (world.run(recipe={"epochs": 1}) / "result.json").is_file()


def test_beginnings_of_files_that_a_killed_run_left_are_swept_on_a_resume(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=1)
    run, left = world.root / "run", ("last/.state-2.pt.a_1.tmp", "best/.delta.safetensors.b.tmp")
    for name in (*left, ".course.json.x1.tmp", ".mine.tmp", "last/.notes.txt.x.tmp"):
        (run / name).write_text("half")
    world.run(resume=True)
    hidden = {path.relative_to(run).as_posix() for path in run.rglob(".*")}
    assert hidden == {".mine.tmp", "last/.notes.txt.x.tmp"}


def test_a_run_killed_between_its_settings_and_its_digests_begins_on_a_resume(
    world: World,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.run(stop=0)
    (world.root / "run" / "frozen.json").unlink()
    assert (world.run(resume=True) / "result.json").is_file()
