"""What a user does wrong: one clear message, the status that is promised, nothing overwritten."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from frostline.deltas import read_delta
from frostline.models import load_model
from small_world import (
    Answer,
    call,
    without_sum,
    write_net,
    write_picture,
    write_pictures,
)
from warm_process import Start


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = write_pictures(root / "photos", train=4, val=2)
        self.model = write_net(root)
        self.run = root / "run"

    def train(self, *more: object, data: object = None, model: object = None) -> Answer:
        arguments = ["--model", model or self.model, "--epochs", 1, "--out", self.run]
        return call("train", data or self.photos, *arguments, *more)

    def arguments(self, *more: object) -> list[object]:
        return ["train", self.photos, "--model", self.model, "--out", self.run, *more]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished run; read it only."""
    made = World(tmp_path_factory.mktemp("world"))
    assert made.train().status == 0
    return made


def refused(answer: Answer, *words: str, status: int = 1) -> None:
    assert answer.status == status
    assert answer.out == ""
    for word in words:
        assert word in answer.message


def untouched(world: World) -> bool:
    return not world.run.exists()


# What is wrong with the data


def test_a_wrong_path_names_the_nearest(world: World) -> None:
    refused(world.train(data=world.root / "fotos"), "no data set at", "Nearest: ", "photos")
    assert untouched(world)


def test_an_empty_folder_says_what_is_expected(world: World) -> None:
    (world.root / "empty").mkdir()
    refused(world.train(data=world.root / "empty"), "is empty", "one folder per class")
    assert untouched(world)


def test_pictures_without_class_folders_say_what_is_expected(world: World) -> None:
    refused(world.train(data=world.photos / "train" / "dark"), "lie flat", "file,label")


def test_a_single_class_is_nothing_to_tell_apart(world: World) -> None:
    shutil.rmtree(world.photos / "train" / "light")
    shutil.rmtree(world.photos / "val" / "light")
    refused(world.train(), "nothing to tell apart", "1 class (dark)")
    assert untouched(world)


def test_text_named_jpg_is_left_out_with_a_warning(world: World) -> None:
    (world.photos / "train" / "dark" / "notes.jpg").write_text("this is a text")
    answer = world.train()
    assert answer.status == 0
    assert "notes.jpg" in answer.err
    assert "will be left out" in answer.err


def test_text_named_jpg_stops_a_run_that_is_strict(world: World) -> None:
    (world.photos / "train" / "dark" / "notes.jpg").write_text("this is a text")
    refused(world.train("--bad-images", "error"), "1 image cannot be read", "notes.jpg")
    assert untouched(world)


def test_text_named_jpg_is_no_picture_to_predict(finished: World, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("this is a text")
    refused(call("predict", finished.run, tmp_path / "notes.jpg"), "notes.jpg")


def test_a_missing_picture_is_named(finished: World) -> None:
    refused(call("predict", finished.run, "nowhere.jpg"), "nowhere.jpg")


def test_a_folder_without_pictures_is_named(finished: World, tmp_path: Path) -> None:
    refused(call("predict", finished.run, tmp_path), str(tmp_path))


def test_pictures_of_an_unknown_class_cannot_be_evaluated(finished: World, tmp_path: Path) -> None:
    write_picture(tmp_path / "darc" / "0.png", 60)
    answer = call("evaluate", finished.run, tmp_path, "--json")
    refused(answer, "classes that the run does not know: 'darc' (nearest: dark")


def test_folds_of_a_divided_folder_are_refused(world: World) -> None:
    refused(world.train("--folds", 3), "is divided already")


# What is wrong with the model


@pytest.mark.parametrize("verb", ["train", "inspect"])
def test_a_misspelt_selector_names_the_nearest(world: World, verb: str) -> None:
    if verb == "train":
        answer = world.train("--freeze", "featurs")
    else:
        answer = call("inspect", world.model, "--freeze", "featurs")
    refused(answer, "'featurs' matches no parameter of Net", "Nearest: features")
    assert untouched(world)


def test_a_selector_that_cannot_be_read_is_refused(world: World) -> None:
    for option in ("--freeze", "--train"):
        answer = world.train(option, "features & (")
        refused(answer, f"'{option}'", "features & (", "it ends where a term", status=2)
    assert untouched(world)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "run", "--to", "tflite"], "'--to': 'tflite' is not one of 'safetensors'"),
        (["inspect", "m", "--on", "foo"], "'--on': 'foo' is not one of 'classifier'"),
        (["export", "run", "--tolerance", "0,01"], "'0,01' is no number; write the decimal point"),
        (["inspect", "m", "--depth", "1.5"], "'1.5' is no whole number."),
        (["features", "prune", "x", "--older-than=-1"], "-1 should be greater than or equal to 0."),
    ],
)
def test_an_option_is_refused_in_plain_words(arguments: list[str], words: str) -> None:
    answer = call(*arguments)
    refused(answer, words, status=2)
    assert "Value error" not in answer.err
    assert "nput should" not in answer.err


@pytest.mark.parametrize("option", ["--lr", "--val-fraction"])
def test_a_decimal_comma_is_answered_with_the_point(world: World, option: str) -> None:
    answer = world.train(option, "0,01")
    refused(answer, f"'{option}'", "'0,01' is no number; write the decimal point, 0.01", status=2)
    refused(world.train(option, "much"), "'much' is no number.", status=2)
    assert untouched(world)


def test_freezing_all_leaves_nothing_to_train(world: World) -> None:
    refused(world.train("--freeze", "all"), "would leave nothing trainable")
    assert untouched(world)


@pytest.mark.parametrize("verb", ["train", "inspect"])
def test_a_misspelt_model_names_the_nearest(world: World, verb: str) -> None:
    answer = call("inspect", "resnet81") if verb == "inspect" else world.train(model="resnet81")
    refused(answer, "resnet81", "resnet18")
    assert untouched(world)


def test_a_model_file_that_is_not_there_is_named(world: World) -> None:
    refused(world.train(model=f"{world.root}/small_ned.py:net"), "small_ned.py", "small_net.py")


def test_a_function_that_is_not_there_is_named(world: World) -> None:
    refused(world.train(model=world.model + "s"), "no function 'nets'", "Nearest: net")


def test_an_error_in_the_model_file_names_its_line(world: World) -> None:
    (world.root / "small_net.py").write_text("import nothing_of_that_name\n")
    refused(world.train(), "(line 1)", "nothing_of_that_name")


def test_weights_of_another_network_are_refused_by_their_names(world: World) -> None:
    other = load_model(f"{world.root}/small_net.py:other", weights="none", classes=5, on="keep")
    save_file(other.model.state_dict(), world.root / "other.safetensors")
    answer = world.train("--weights", world.root / "other.safetensors")
    refused(answer, "other.safetensors does not fit Net", "features.0.weight")
    assert untouched(world)


@pytest.mark.parametrize("content", ["", "this is a text\n", "<!DOCTYPE html><html>"])
def test_a_file_that_holds_no_weights_is_refused(world: World, content: str) -> None:
    (world.root / "w.pth").write_text(content)
    refused(world.train("--weights", world.root / "w.pth"), "w.pth is")


def test_weights_that_are_not_there_are_named(world: World) -> None:
    refused(world.train("--weights", world.root / "w.pth"), "there is no file", "w.pth")


# What is wrong with the output


def test_an_output_that_cannot_be_written_is_found_before_any_work(world: World) -> None:
    (world.root / "file").write_text("mine")
    answer = call("train", "no such data", "--model", "x", "--out", world.root / "file" / "run")
    refused(answer, "cannot write", "Nothing was overwritten")
    assert (world.root / "file").read_text() == "mine"


def test_a_file_is_not_overwritten_by_a_run(world: World) -> None:
    world.run.write_text("mine")
    refused(world.train(), "already holds something; nothing was overwritten")
    assert world.run.read_text() == "mine"


def test_an_existing_run_is_not_overwritten(finished: World) -> None:
    before = {p: p.read_bytes() for p in finished.run.rglob("*") if p.is_file()}
    refused(finished.train(), "already holds a run; nothing was overwritten", "--resume")
    assert {p: p.read_bytes() for p in finished.run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("verb", ["evaluate", "predict", "verify"])
def test_a_folder_that_is_no_run_is_refused(world: World, verb: str) -> None:
    more = [] if verb == "verify" else [world.photos]
    refused(call(verb, world.photos, *more), "is no run: it has no run.toml")


@pytest.mark.parametrize("verb", ["report", "compare", "inspect", "evaluate"])
def test_a_page_is_written_over_no_other_file(finished: World, tmp_path: Path, verb: str) -> None:
    other = shutil.copytree(finished.run, tmp_path / "other")
    arguments = {
        "report": ["report", finished.run, "--out"],
        "compare": ["compare", finished.run, other, "--html"],
        "inspect": ["inspect", finished.model, "--html"],
        "evaluate": ["evaluate", finished.run, finished.photos, "--report"],
    }[verb]
    mine = tmp_path / "run.toml"
    mine.write_text("my own")
    refused(call(*arguments, mine), "is no page that Frostline wrote, so it was not overwritten")
    assert mine.read_text() == "my own"
    refused(call(*arguments, tmp_path), "is a folder, so it was not overwritten. Name a file")
    if verb == "inspect":  # its page takes seconds, and is written by the same function
        return
    assert call(*arguments, mine, "--force").status == 0
    assert mine.read_text().startswith("<!doctype html>")
    assert call(*arguments, mine).status == 0  # over its own


def test_a_table_is_written_over_its_own_kind_alone(finished: World, tmp_path: Path) -> None:
    evaluate = ["evaluate", finished.run, finished.photos, "--csv"]
    mine = tmp_path / "labels.csv"
    mine.write_text("file,label\n0.png,dark\n")
    refused(call(*evaluate, mine), "is no table that Frostline wrote, so it was not overwritten")
    refused(call(*evaluate, tmp_path), "is a folder, so it was not overwritten. Name a file")
    assert mine.read_text() == "file,label\n0.png,dark\n"
    for more in (["--force"], []):
        assert call(*evaluate, mine, *more).status == 0
        assert mine.read_text().startswith("file,true_class")


@pytest.mark.parametrize("option", ["--csv", "--report"])
def test_a_file_that_cannot_be_written_is_told_before_the_pictures_are_read(
    finished: World, tmp_path: Path, option: str
) -> None:
    photos = shutil.copytree(finished.photos / "val", tmp_path / "photos")
    (photos / "dark" / "text.png").write_text("this is text")
    answer = call("evaluate", finished.run, photos, option, photos / "dark" / "0.png" / "out")
    refused(answer, "cannot write", "Choose a folder you can write to")
    assert "left out" not in answer.err


@pytest.mark.parametrize("verb", ["plan", "merge"])
def test_plans_and_checkpoints_are_written_over_no_file(
    finished: World, tmp_path: Path, verb: str
) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_text("my own")
    plan = ["plan", finished.model, "--kind", "full", "--out", mine]
    arguments = plan if verb == "plan" else ["merge", finished.run, "--out", mine]
    refused(call(*arguments), "is there already. Choose another --out, or remove it first")
    assert mine.read_text() == "my own"


def test_a_run_that_was_made_in_python_says_how_to_resume_it(finished: World) -> None:
    copy = finished.root / "from_python"
    shutil.copytree(finished.run, copy)
    text = without_sum((copy / "run.toml").read_text())
    (copy / "run.toml").write_text(text.replace(f'name = "{finished.model}"', 'name = "python:N"'))
    refused(call("train", "--resume", copy), "handed over in Python (python:N)", "resume=True")
    shutil.rmtree(copy)


@pytest.mark.parametrize("place", ["run", "train/run", "train/dark/run", "."])
def test_a_run_is_not_written_among_the_classes_of_its_data(world: World, place: str) -> None:
    world.run = world.photos / place
    before = sorted(world.photos.rglob("*"))
    answer = world.train()
    refused(answer, "lies inside the data in", "take it for a class", "Choose an --out outside")
    assert sorted(world.photos.rglob("*")) == before


def test_a_run_beside_a_table_of_its_pictures_is_fine(world: World) -> None:
    table = world.photos / "table.csv"
    rows = [f"train/{n}/{i}.png,{n}" for n in ("dark", "light") for i in range(4)]
    table.write_text("\n".join(["file,label", *rows]))
    world.run = world.photos / "run"
    assert world.train(data=table).status == 0


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_never_finished_an_epoch_says_what_to_do(
    start: Start, world: World, resume: bool
) -> None:
    environment = {**os.environ, "TEST_KILL_AT": "2", "TEST_SIGNAL": "SIGKILL"}
    assert start(world.arguments("--epochs", 2, "--features", "off"), environment).returncode == -9
    if resume:
        assert call("train", "--resume", world.run).status == 0
        return
    refused(
        world.train("--lr", "0.5"),
        "holds a run that has not finished an epoch; nothing was overwritten",
        "--resume with the same settings begins it again",
        "For other settings delete that folder, in which nothing is trained yet",
    )


def test_a_run_that_fails_in_its_first_epoch_does_not_block_its_folder(world: World) -> None:
    answer = world.train("--lr", "1e30", "--optimizer", "sgd", "--batch-size", 2, "--train", "all")
    assert "--lr" in answer.message
    assert untouched(world)
    assert world.train().status == 0


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["No such command 'trian'"]),
        (["train"], ["Missing argument"]),
        (["train", "photos"], ["--model"]),
        (["train", "photos", "--model", "x", "--epoch", "3"], ["No such option"]),
        (["train", "photos", "--model", "x", "--epochs", "many"], ["--epochs"]),
        (["train", "photos", "--model", "x", "--on", "top"], ["--on"]),
        (["train", "photos", "--model", "x", "--head", "a,b"], ["no list of widths"]),
        (["train", "photos", "--model", "x", "--head", "100,,5"], ["'100,,5' is no list of width"]),
        (
            ["train", "photos", "--model", "x", "--head", "8", "--on", "keep"],
            ["classifier is kept"],
        ),
        (["inspect", "x", "--head", "8"], ["the classifier is kept, so it gets no hidden layers"]),
        (["inspect", "x", "--freeze", "a &"], ["--freeze", "cannot read the selector"]),
        (["evaluate", "r", "d", "--device", "nonsense"], ["'nonsense' names no device. Use auto"]),
        (["predict", "r", "f", "--device", "cpu:x"], ["'cpu:x' names no device"]),
        (["train", "photos", "--model", "x", "--batch-size", "0"], ["--batch-size"]),
        (["train", "d", "--model", "x", "--freeze", "a", "--train", "b"], ["--freeze and --train"]),
        (
            ["inspect", "x", "--freeze", "a", "--train", "b"],
            ["give one of --freeze and --train; each of them says what is frozen"],
        ),
        (["inspect", "x", "--html", "x.html", "--depth", "1"], ["--html", "all layers", "--depth"]),
        (["inspect", "x", "--samples", "9"], ["--samples", "for the page", "--html"]),
        (
            ["inspect", "x", "--html", "x.html", "--train", "rows:head.weight[0:2]"],
            ["draws whole tensors", "'rows:head.weight[0:2]' names rows of one"],
        ),
        (
            ["train", "d", "--model", "x", "--precision", "exact", "--storage", "int8"],
            ["--precision exact", "--storage int8"],
        ),
        (
            ["train", "d", "--model", "x", "--features", "off", "--storage", "float16"],
            ["--features off", "--storage float16"],
        ),
        (["features", "prune", "d", "--max-size=-1GB"], ["'-1GB' is no size"]),
        (["predict", "run", "f", "--json", "--csv"], ["one of --json and --csv"]),
        (["predict", "run"], ["Missing argument"]),
        (["train", "run", "--resume", "--epochs", "9", "--lr", "1"], ["leave out", "--lr"]),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(arguments: list[str], words: list[str]) -> None:
    answer = call(*arguments)
    assert answer.status == 2
    assert answer.out == ""
    told = " ".join(answer.err.split())
    assert all(word in told for word in words), answer.err
    assert "Traceback" not in answer.err


def test_what_a_model_file_prints_is_no_part_of_the_json(tmp_path: Path) -> None:
    file = tmp_path / "loud.py"
    file.write_text(
        "from torch import nn\nprint('read')\n\n"
        "def net():\n    print('built')\n    return nn.Sequential(nn.Linear(2, 2))\n"
    )
    answer = call("inspect", f"{file}:net", "--json")
    assert answer.json
    assert "read" in answer.err
    assert "built" in answer.err


@pytest.mark.parametrize(
    ("option", "value", "word", "status"),
    [
        ("--epochs", "0", "epochs=0", 2),
        ("--lr", "-1", "lr=-1.0", 2),
        ("--lr", "nan", "lr=nan", 2),
        ("--warmup", "inf", "warmup=inf", 2),
        ("--momentum", "2", "momentum=2.0", 2),
        ("--patience", "0", "patience=0", 2),
        ("--seed", "-5", "seed=-5", 2),
        ("--val-fraction", "1", "val_fraction=1.0", 2),
        ("--augment", "views", "cannot read augment 'views'", 2),
        ("--augment", "views:0", "0 views", 2),
        ("--fold", "2", "fold 2 without folds", 2),
        ("--head", "-3", "hidden width is -3", 2),
        ("--head", "0", "hidden width is 0", 2),
        ("--head", "8,0", "hidden width is 0", 2),
        ("--device", "nonsense", "'nonsense' names no device", 2),
        ("--device", "cuda:99", "no device 'cuda:99'", 1),  # that takes the machine to know
    ],
)
def test_a_value_out_of_range_is_named(
    world: World, option: str, value: str, word: str, status: int
) -> None:
    answer = world.train(option, value)
    assert answer.status == status
    assert word in answer.message
    assert untouched(world)


def test_a_fold_beyond_the_last_is_wrong_usage(world: World) -> None:
    answer = world.train("--folds", 3, "--fold", 3)
    refused(answer, "asked for fold 3 of 3; they are counted from 0", status=2)
    assert untouched(world)


def test_an_empty_list_of_files_is_wrong_usage(finished: World) -> None:
    for stdin in ("", "\n \n"):
        answer = call("predict", finished.run, "-", stdin=stdin)
        refused(answer, "standard input is empty", "frostline predict RUN -", status=2)


def test_resume_of_other_data_is_refused(finished: World, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", train=2, val=1)
    answer = call("train", other, "--out", finished.run, "--resume")
    refused(answer, "cannot resume with other data", str(finished.photos))


def test_resume_finds_data_that_were_moved_by_their_content(world: World) -> None:
    assert world.train().status == 0
    moved = world.photos.rename(world.root / "moved")
    gone = call("train", "--resume", world.run, "--epochs", 2)
    refused(gone, "which is gone", f"frostline train PATH --resume --out {world.run}")
    answer = call("train", moved, "--resume", "--out", world.run, "--epochs", 2)
    assert answer.status == 0, answer.err
    assert call("train", "--resume", world.run, "--epochs", 3).status == 0
    shutil.rmtree(moved)
    other = write_pictures(world.root / "other", train=4, val=3)
    answer = call("train", other, "--resume", "--out", world.run, "--epochs", 4)
    assert answer.status == 1
    assert "are not those that" in answer.message


def test_resume_with_a_model_wants_to_know_the_run(finished: World) -> None:
    answer = call("train", "--resume", finished.run, "--model", "resnet18")
    refused(answer, "leave out --model, or name the run by --out", status=2)


def test_resume_with_other_settings_names_them(finished: World) -> None:
    answer = finished.train("--resume", "--lr", "0.5")
    assert answer.status == 1
    assert re.search(r"training\.lr was \S+ and is 0\.5", answer.message)


def test_resume_without_a_run_is_refused_before_any_work(world: World) -> None:
    refused(world.train("--resume", data="no such data"), "there is no folder", str(world.run))


def test_an_error_of_the_users_own_model_is_one_message_and_can_be_traced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.root / "small_net.py").write_text(
        "from torch import nn\n"
        "class Bad(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        raise KeyError('mine')\n"
        "def net():\n"
        "    return Bad(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    answer = world.train("--on", "keep", "--train", "all")
    assert answer.status == 1
    assert "Error: unexpected KeyError: 'mine'" in answer.err
    assert "FROSTLINE_TRACEBACK=1" in answer.err
    assert "Traceback" not in answer.err
    monkeypatch.setenv("FROSTLINE_TRACEBACK", "1")
    shutil.rmtree(world.run, ignore_errors=True)
    with pytest.raises(KeyError, match="mine"):
        world.train("--on", "keep", "--train", "all")


def test_shapes_that_do_not_fit_are_told_as_the_models_own_error(world: World) -> None:
    (world.root / "small_net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    answer = world.train("--on", "keep", "--train", "all")
    refused(
        Answer(answer.status, "", answer.err),
        "small_net.py:net: the model's own forward failed on pictures of shape (batch, 3, 224, 22",
        "mat1 and mat2 shapes cannot be multiplied",
        "return (model, Preprocessing) with the size and channels that they take",
    )
    assert untouched(world)


@pytest.mark.parametrize("verb", ["train", "doctor", "inspect"])
def test_a_lazy_layer_of_a_users_own_network_is_named(world: World, verb: str) -> None:
    (world.root / "small_net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))\n"
    )
    model = f"{world.root / 'small_net.py'}:net"
    answer = world.train() if verb == "train" else call(verb, model)
    assert answer.status == 1
    assert "1.weight has no shape yet: a lazy module gets it in its first call" in answer.message


def test_a_size_that_the_model_itself_refuses_is_told_as_its_own_error(world: World) -> None:
    """As those of transformers do, with a ValueError."""
    (world.root / "small_net.py").write_text(
        "from torch import nn\n"
        "class Picky(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if x.shape[-1] != 64:\n"
        "            raise ValueError('Input size does not match model (64*64).')\n"
        "        return super().forward(x)\n"
        "def net():\n"
        "    return Picky(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))\n"
    )
    answer = world.train("--on", "keep", "--train", "all")
    refused(
        Answer(answer.status, "", answer.err),
        "small_net.py:net: the model's own forward failed",
        "Input size does not match model (64*64). Make its layers fit that shape",
    )


def test_an_error_in_the_models_own_forward_names_its_line(world: World) -> None:
    (world.root / "small_net.py").write_text(
        "from torch import nn\n"
        "class Bad(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return x.view(-1, 13)\n"
        "def net():\n"
        "    return Bad(nn.Linear(4, 2))\n"
    )
    answer = world.train("--on", "keep", "--train", "all")
    assert "forward failed (line 4) on pictures" in answer.message


# Interrupted


def test_ctrl_c_within_an_epoch_keeps_the_last_whole_epoch(start: Start, world: World) -> None:
    # Passes: 1 to look at the output, then 2 to train and 1 to validate in each epoch.
    environment = {**os.environ, "TEST_KILL_AT": "9", "TEST_SIGNAL": "SIGINT"}
    options = ("--epochs", 5, "--batch-size", 4, "--features", "off")
    stopped = start(world.arguments(*options), environment)
    assert stopped.returncode == 1
    assert "keeps what was trained up to the end of epoch 2" in stopped.stderr
    assert f"Go on with: frostline train --resume {world.run}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert read_delta(world.run / "last" / "delta.safetensors").about["epoch"] == "2"
    resumed = call("train", "--resume", world.run)
    assert resumed.status == 0, resumed.err
    assert "5/5" in resumed.out


def test_ctrl_c_before_the_first_epoch_leaves_a_run_that_can_be_resumed(
    start: Start, world: World
) -> None:
    environment = {**os.environ, "TEST_KILL_AT": "2", "TEST_SIGNAL": "SIGINT"}
    stopped = start(world.arguments("--epochs", 2, "--features", "off"), environment)
    assert stopped.returncode == 1
    assert "Stopped within the first epoch; only the settings are written" in stopped.stderr
    assert f"Begin again with: frostline train --resume {world.run}" in stopped.stderr
    assert call("train", "--resume", world.run).status == 0


def test_ctrl_c_before_anything_is_written_leaves_nothing(start: Start, world: World) -> None:
    environment = {**os.environ, "TEST_KILL_AT": "1", "TEST_SIGNAL": "SIGINT"}
    stopped = start(world.arguments("--epochs", 2, "--features", "off"), environment)
    assert stopped.returncode == 1
    assert "Stopped before training began" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert untouched(world)


def test_a_reader_that_goes_away_gets_no_traceback(finished: World) -> None:
    import subprocess
    import sys

    command = f'"{sys.executable}" -c "from frostline.cli import main; main()"'
    found = subprocess.run(
        ["bash", "-c", f'{command} inspect "$0" --names | head -1', finished.model],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in found.stderr
    assert found.returncode == 0
