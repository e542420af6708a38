"""The verbs, called as a user calls them: what they print, where, and in what form."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from frostline.errors import FrostlineError
from frostline.models import ModelSpec, build
from report_world import page_of
from small_world import Answer, call, without_sum, write_net, write_picture, write_pictures
from warm_process import Start

ESCAPE = "\x1b"


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = write_pictures(root / "photos")
        self.model = write_net(root)
        self.run = root / "run"

    def train(self, *more: object, photos: Path | None = None, out: Path | None = None) -> Answer:
        arguments = ["--model", self.model, "--weights", "none", "--epochs", 2, "--batch-size", 6]
        return call("train", photos or self.photos, *arguments, "--out", out or self.run, *more)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished run; read it only."""
    made = World(tmp_path_factory.mktemp("world"))
    answer = made.train("--lr", 0.05, "--epochs", 12, "--train", "middle | head")
    assert answer.status == 0, answer.err
    return made


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# What starts quickly

HELP = """
import sys, time
start = time.perf_counter()
sys.argv = ["frostline", *{arguments}]
from frostline.cli import main
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
seconds = time.perf_counter() - start
heavy = {{"torch", "torchvision", "accelerate", "timm", "transformers", "sklearn", "pandas",
          "matplotlib", "tensorboard"}}
print("loaded:", sorted(heavy & set(sys.modules)), f"{{seconds:.3f}}", file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_answers_at_once_and_loads_nothing_heavy(arguments: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", HELP.format(arguments=arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, seconds = found.stderr.rsplit(maxsplit=1)
    assert loaded == "loaded: []"
    assert float(seconds) < 5  # generous: the machine may be busy
    assert "frostline" in found.stdout.lower()


def test_options_of_train_have_the_defaults_of_the_settings() -> None:
    from inspect import signature

    from frostline.cli.train import train
    from frostline.config import DataSettings, FeatureSettings, FreezeSettings, ModelSettings

    options = signature(train).parameters
    sections = (DataSettings, FeatureSettings, FreezeSettings, ModelSettings)
    fields = {name: field for one in sections for name, field in one.model_fields.items()}
    shared = fields.keys() & options.keys()
    assert {"val_fraction", "storage", "norm", "on", "batch_size", "bad_images"} <= shared
    for name in shared:
        assert options[name].default == fields[name].default, name


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("frostline")
    if not command.exists():
        pytest.skip("frostline's command is not installed beside this Python")
    found = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("frostline ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file here that is always full")
def test_output_to_a_full_disk_is_told_as_such() -> None:
    command = [sys.executable, "-m", "frostline", "--version"]
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith("Error: the output cannot be written: No space left on device")


def test_the_package_can_be_run_as_a_module() -> None:
    command = [sys.executable, "-m", "frostline", "train"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "Usage: python -m frostline train" in found.stderr


@pytest.mark.parametrize(
    "verb", ["demo", "inspect", "train", "evaluate", "predict", "verify", "report", "compare"]
)
def test_every_verb_has_help_in_80_columns(verb: str) -> None:
    answer = call(verb, "--help")
    assert answer.status == 0
    assert widest(answer.out) <= 80


def test_every_option_of_a_recipe_is_an_option_of_train() -> None:
    from frostline.recipe import Recipe

    text = call("train", "--help").out
    assert all(f"--{name.replace('_', '-')}" in text for name in Recipe.model_fields)


# train


def test_train_says_what_it_did_and_exits_with_0(world: World) -> None:
    answer = world.train()
    assert answer.status == 0, answer.err
    assert "16 to train on, 8 to validate" in answer.out
    assert "2 classes: dark, light" in answer.out
    assert "Verified: 14 frozen tensors" in answer.out
    assert f"Written to {world.run}" in answer.out
    assert (world.run / "result.json").is_file()


def test_train_prints_plainly_in_80_columns_into_a_pipe(world: World) -> None:
    answer = world.train()
    tables = answer.out.replace(str(world.run), "RUN").replace(world.model, "MODEL")
    assert widest(tables) <= 80
    assert ESCAPE not in answer.out + answer.err


def test_train_shows_no_bar_in_a_pipe(world: World) -> None:
    assert world.train().err == ""


def test_json_of_train_is_one_document_and_the_rest_goes_to_standard_error(world: World) -> None:
    answer = world.train("--json")
    assert (
        answer.json["accuracy"] == json.loads((world.run / "result.json").read_text())["accuracy"]
    )
    assert [line["epoch"] for line in answer.json["history"]] == [1, 2]
    assert "16 to train on" in answer.err


def test_the_default_is_to_freeze_all_but_the_head(world: World) -> None:
    world.train()
    frozen = json.loads((world.run / "frozen.json").read_text())["tensors"]
    assert {name.partition(".")[0] for name in frozen} == {"features", "middle"}


def test_a_wide_head_on_the_logits_leaves_the_network_whole(world: World) -> None:
    answer = world.train("--head", "100", "--on", "logits", "--freeze", "backbone")
    assert answer.status == 0, answer.err
    assert "head at head" in answer.out
    frozen = json.loads((world.run / "frozen.json").read_text())["tensors"]
    assert "backbone.head.weight" in frozen
    settings = tomllib.loads((world.run / "run.toml").read_text())
    assert (settings["model"]["on"], settings["model"]["hidden"]) == ("logits", [100])
    assert call("verify", world.run).status == 0


def test_a_grey_network_from_one_place_in_a_file_of_two_is_trained_and_opened(
    world: World,
) -> None:
    file = world.root / "small_net.py"
    of_one = file.read_text().replace("Conv2d(3,", "Conv2d(1,")
    file.write_text(of_one.replace("crop=(16, 16))", "crop=(16, 16), mean=(0.5,), std=(0.5,))"))
    built = build(ModelSpec.parse(world.model), weights="none").model
    student = {f"module.{name}": tensor + 1 for name, tensor in built.state_dict().items()}
    both = world.root / "both.pth.tar"
    torch.save({"student": student, "teacher": built.state_dict()}, both)
    answer = world.train("--weights", both)
    assert answer.status == 1
    assert "Say which, as in --weights both.pth.tar:teacher." in answer.message.replace("\n", " ")
    answer = world.train("--weights", f"{both}:student")
    assert answer.status == 0, answer.err
    assert "tensors loaded from student.module" in answer.out
    assert call("verify", world.run).status == 0
    picture = next((world.photos / "val").rglob("*.png"))
    assert call("predict", world.run, picture).status == 0
    both.write_bytes(both.read_bytes() + b"x")
    answer = call("verify", world.run)
    assert answer.status == 3
    assert "both.pth.tar is not the file that" in answer.message


def test_views_are_noted_in_the_settings(world: World) -> None:
    assert world.train("--augment", "views:2").status == 0
    assert tomllib.loads((world.run / "run.toml").read_text())["data"]["augment"] == "views:2"


def test_each_fold_holds_out_other_pictures(world: World) -> None:
    seen = []
    for fold in range(3):
        out = world.root / f"fold{fold}"
        answer = world.train(
            "--folds", 3, "--fold", fold, "--batch-size", 4, photos=world.photos / "train", out=out
        )
        assert answer.status == 0, answer.err
        assert f"fold {fold} of 3 held out" in answer.out
        seen.append(set(without_sum((out / "trained_on.txt").read_text()).split()))
    everything = set.union(*seen)
    assert len(everything) == 16
    left_out = [everything - trained for trained in seen]
    assert sum(map(len, left_out)) == 16
    assert set.union(*left_out) == everything


def test_a_table_of_files_and_labels_is_data(world: World) -> None:
    rows = [
        f"photos/{part}/{name}/{index}.png,{name},{part}"
        for part, count in (("train", 6), ("val", 3))
        for name in ("dark", "light")
        for index in range(count)
    ]
    table = world.root / "table.csv"
    table.write_text("file,label,split\n" + "\n".join(rows) + "\n")
    answer = world.train(photos=table)
    assert answer.status == 0, answer.err
    assert "12 to train on, 6 to validate" in answer.out
    evaluated = call("evaluate", world.run, table, "--json").json
    assert evaluated["loss"] == json.loads((world.run / "result.json").read_text())["loss"]


def test_a_run_without_out_goes_to_the_next_free_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    for number in (1, 2):
        answer = call("train", "photos", "--model", "small_net.py:net", "--epochs", 1)
        assert answer.status == 0, answer.err
        assert (world.root / "runs" / f"net-{number}" / "result.json").is_file()


def test_a_failed_run_takes_no_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    answer = call("train", "photos", "--model", "small_net.py:net", "--freeze", "featurs")
    assert answer.status == 1
    assert not (world.root / "runs").exists()


def test_findings_about_the_data_go_to_standard_error(world: World) -> None:
    (world.photos / "train" / "dark" / "bad.png").write_text("no picture")
    answer = world.train()
    assert answer.status == 0
    assert "Warning: 1 image cannot be read and will be left out" in answer.err
    assert "bad.png" not in answer.out


def test_resume_by_its_folder_alone_goes_on_with_the_runs_own_settings(world: World) -> None:
    world.train()
    before = (world.run / "run.toml").read_text()
    answer = call("train", "--resume", world.run)
    assert answer.status == 0, answer.err
    assert (world.run / "run.toml").read_text() == before


def test_the_same_command_with_resume_alone_makes_a_run_no_longer(world: World) -> None:
    asked = ["train", world.photos, "--model", f"{world.root / 'small_net.py'}:net"]
    asked += ["--weights", "none", "--features", "off", "--out", world.run]
    assert call(*asked, "--epochs", 2).status == 0
    answer = call(*asked, "--resume")
    assert answer.status == 0, answer.err
    assert len((world.run / "metrics.jsonl").read_text().splitlines()) == 2


def test_resume_with_out_and_its_data_goes_on(world: World) -> None:
    world.train()
    assert call("train", world.photos, "--out", world.run, "--resume").status == 0


# inspect


def test_inspect_shows_layers_stages_and_what_freezing_saves(finished: World) -> None:
    answer = call("inspect", finished.model, "--freeze", "features")
    assert answer.status == 0
    assert "eval, held" in answer.out
    assert "stage:0" in answer.out
    assert "Freezing saves " in answer.out
    assert widest(answer.out) <= 80


def test_inspect_without_a_selector_freezes_nothing(finished: World) -> None:
    assert "Nothing is frozen. Try --freeze" in call("inspect", finished.model).out


def test_inspect_train_freezes_the_rest(finished: World) -> None:
    found = call("inspect", finished.model, "--train", "head", "--json").json
    trainable = {p["name"] for p in found["parameters"] if p["trainable"]}
    assert trainable == {"head.weight", "head.bias"}


def test_json_of_inspect_is_one_document(finished: World) -> None:
    answer = call("inspect", finished.model, "--freeze", "features", "--json")
    assert answer.err == ""
    found = answer.json
    assert found["total"] > found["trainable"] > 0
    assert found["stages"][-1] == ["head"]
    frozen = sum(p["numbers"] for p in found["parameters"] if not p["trainable"])
    assert found["saved_bytes"] == {"gradients": 4 * frozen, "adamw_state": 8 * frozen}


def test_inspect_lists_every_parameter_when_asked(finished: World) -> None:
    assert "features.0.weight" in call("inspect", finished.model, "--names").out
    assert "features.0.weight" not in call("inspect", finished.model, "--depth", 0).out


def test_inspect_shows_a_head_where_train_would_put_it(finished: World) -> None:
    arguments = ["--on", "logits", "--head", "7", "--classes", 3, "--freeze", "backbone", "--json"]
    found = call("inspect", finished.model, *arguments).json
    shapes = {p["name"]: p["shape"] for p in found["parameters"] if p["trainable"]}
    assert shapes["head.0.weight"] == [7, 5]
    assert shapes["head.2.weight"] == [3, 7]
    assert all(name.startswith("head.") for name in shapes)
    found = call("inspect", finished.model, "--on", "classifier", "--json").json
    assert {"name": "head.bias", "shape": [10], "numbers": 10, "trainable": True} in found[
        "parameters"
    ]


def test_inspect_loads_weights_that_fit_but_for_the_classifier_that_is_replaced(
    finished: World, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from frostline.models import load_model

    weights = tmp_path / "weights.safetensors"
    loaded = load_model(finished.model, weights="none", classes=3)
    save_file(loaded.model.state_dict(), weights)
    assert call("inspect", finished.model, "--weights", weights).status == 1
    answer = call("inspect", finished.model, "--weights", weights, "--on", "classifier")
    assert answer.status == 0, answer.err


# evaluate and verify


def test_json_of_evaluate_has_all_figures(finished: World) -> None:
    answer = call("evaluate", finished.run, finished.photos, "--json")
    assert answer.status == 0
    found = answer.json
    assert set(found) >= {"accuracy", "loss", "macro_f1", "samples", "per_class"}
    assert [c["name"] for c in found["per_class"]] == ["dark", "light"]
    result = json.loads((finished.run / "result.json").read_text())
    assert {key: result[key] for key in found} == found


def test_evaluate_prints_tables_in_80_columns(finished: World) -> None:
    answer = call("evaluate", finished.run, finished.photos)
    assert "Per class" in answer.out
    assert "Confusion" in answer.out
    assert "on 8 pictures" in answer.out
    assert widest(answer.out) <= 80


def test_evaluate_warns_of_pictures_that_were_trained_on(finished: World) -> None:
    answer = call("evaluate", finished.run, finished.photos / "train", "--json")
    assert "Warning: 16 of 16 pictures have the content of one" in answer.err
    assert answer.json["samples"] == 16


def test_the_table_of_evaluate_has_the_surest_mistakes_first_and_the_surest_hits_last(
    finished: World, tmp_path: Path
) -> None:
    swapped = tmp_path / "swapped"  # half of the pictures under the other class
    for part, name in (("dark", "dark"), ("light", "dark"), ("light", "light")):
        for file in sorted((finished.photos / "val" / part).iterdir())[:3]:
            write = swapped / name / f"{part}, {file.name}"
            write.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, write)
    answer = call("evaluate", finished.run, swapped, "--csv", tmp_path / "é.csv", "--json")
    assert answer.json["csv"] == str(tmp_path / "é.csv")
    text = (tmp_path / "é.csv").read_text(encoding="ascii")
    rows = list(csv.DictReader(io.StringIO(text)))
    wrong = [row["result"] == "wrong" for row in rows]
    assert len(rows) == answer.json["samples"] == 9
    assert wrong == [True] * 3 + [False] * 6
    assert wrong.count(False) / 9 == answer.json["accuracy"]
    sureness = [float(row["predicted_probability"]) for row in rows]
    assert sureness[:3] == sorted(sureness[:3], reverse=True)
    assert sureness[3:] == sorted(sureness[3:])
    predicted = call("predict", finished.run, *(row["file"] for row in rows), "--json").json
    for row, entry in zip(rows, predicted, strict=True):
        assert row["true_class"] == Path(row["file"]).parent.name
        assert row["predicted_class"] == entry["class"]
        chances = (row["true_probability"], row["predicted_probability"])
        expected = (entry["probabilities"][row["true_class"]], entry["probability"])
        assert tuple(map(float, chances)) == pytest.approx(expected, abs=1e-5)


def test_a_table_of_names_beyond_ascii_says_that_it_is_utf_8(
    finished: World, tmp_path: Path
) -> None:
    shutil.copytree(finished.photos / "val", tmp_path / "蚂 “蚁”")
    table = tmp_path / "table.csv"
    assert call("evaluate", finished.run, tmp_path / "蚂 “蚁”", "--csv", table).status == 0
    assert table.read_bytes().startswith(b"\xef\xbb\xbffile,true_class,")
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
    assert all(Path(row["file"]).is_file() for row in rows)


def test_the_page_of_evaluate_shows_the_mistakes_and_what_was_left_out(
    finished: World, tmp_path: Path
) -> None:
    wrong = tmp_path / "photos" / "dark" / "<script>.png"
    wrong.parent.mkdir(parents=True)
    shutil.copy(finished.photos / "val" / "light" / "0.png", wrong)
    shutil.copy(finished.photos / "train" / "dark" / "0.png", wrong.with_name("seen.png"))
    wrong.with_name("text.png").write_text("this is text")
    file = tmp_path / "page.html"
    answer = call("evaluate", finished.run, tmp_path / "photos", "--report", file)
    assert answer.out.endswith(f"Written to {file}\n")
    page = page_of(file)
    assert "script" not in page.tags
    assert "Accuracy 50.0 %" in page.text
    assert "text.png: it is not an image" in page.text
    assert "1 of 2 pictures have the content of one" in page.text
    mistakes = page.text[page.text.index("Most confident mistakes") :]
    mistakes = mistakes[: mistakes.index("Least confident hits")]
    assert "is dark" in mistakes
    assert "<script>.png" in mistakes
    assert "seen.png" not in mistakes
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 2


def test_verify_says_what_was_proven(finished: World) -> None:
    answer = call("verify", finished.run)
    assert answer.status == 0
    assert answer.out.count("ok  ") == 3
    assert "Verified: 7 frozen tensors, xxh3:" in answer.out


def test_json_of_verify_is_one_document(finished: World) -> None:
    answer = call("verify", finished.run, "--json")
    assert answer.json["verified"] is True
    assert answer.json["tensors"] == 7


def test_verify_names_what_no_file_shows(world: World) -> None:
    file = world.root / "small_net.py"
    net = file.read_text().replace("from torch import nn", "import torch\nfrom torch import nn")
    file.write_text(
        net.replace(
            "        self.middle", "        self.features.t = torch.ones(3)\n        self.middle"
        )
    )
    assert world.train("--epochs", 1).status == 0
    answer = call("verify", world.run)
    assert answer.out.endswith("; not covered: features.t (a plain attribute)\n")
    assert call("verify", world.run, "--json").json["not_covered"] == [
        "features.t (a plain attribute)"
    ]


def test_a_run_that_froze_nothing_says_so(world: World) -> None:
    answer = world.train("--train", "all")
    assert "Verified: nothing was frozen" in answer.out
    assert call("verify", world.run).out.splitlines()[-1] == "Verified: nothing was frozen"


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ("head", "lacks tensors that this run trained: middle.0.weight, middle.0.bias"),
        ("features | middle | head", "holds tensors that were to stay frozen: features.0.weight"),
    ],
)
def test_a_delta_of_another_run_is_a_broken_promise(
    world: World, trained: str, message: str
) -> None:
    world.train("--train", "middle | head")
    other = world.root / "other"
    world.train("--train", trained, out=other)
    shutil.copy(other / "best" / "delta.safetensors", world.run / "best" / "delta.safetensors")
    for arguments in (["verify", world.run], ["evaluate", world.run, world.photos]):
        answer = call(*arguments)
        assert answer.status == 3
        assert answer.out == ""
        assert f"best/delta.safetensors {message}" in answer.message
        assert "It is another run's, or was changed; restore it" in answer.message


def test_verify_exits_with_3_where_a_promise_was_broken(world: World) -> None:
    world.train()
    frozen = world.run / "frozen.json"
    digests = json.loads(frozen.read_text())["tensors"]
    digests["features.0.bias"] = "0" * 32
    frozen.write_text(json.dumps({"tensors": digests}))
    answer = call("verify", world.run)
    assert answer.status == 3
    assert "features.0.bias" in answer.message
    assert answer.out == ""
    answer = call("verify", world.run, "--json")
    assert answer.status == 3
    assert answer.json["verified"] is False
    assert "features.0.bias" in answer.json["why"]


# predict


def test_predict_tells_the_classes_it_was_taught(finished: World) -> None:
    found = call("predict", finished.run, finished.photos / "val", "--json").json
    assert len(found) == 8
    assert all(f"/{entry['class']}/" in entry["file"] for entry in found)


def test_json_of_predict_names_the_probabilities_of_all_classes(finished: World) -> None:
    for entry in call("predict", finished.run, finished.photos / "val", "--json").json:
        assert len(entry["top"]) == 1
        assert set(entry["probabilities"]) == {"dark", "light"}
        assert sum(entry["probabilities"].values()) == pytest.approx(1)
        assert max(entry["probabilities"].values()) == entry["probability"]


def test_predict_takes_files_and_folders_in_the_order_given(finished: World) -> None:
    one = finished.photos / "val" / "light" / "2.png"
    found = call("predict", finished.run, one, finished.photos / "val" / "dark", "--json").json
    assert [Path(entry["file"]).name for entry in found] == [
        "2.png",
        *(f"{n}.png" for n in range(4)),
    ]
    assert found[0]["file"] == str(one)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_predict_reads_a_list_of_files_from_standard_input(finished: World, end: str) -> None:
    files = [str(finished.photos / "val" / "dark" / f"{n}.png") for n in (3, 1)]
    answer = call("predict", finished.run, "-", "--json", stdin=end.join([*files, ""]))
    assert [entry["file"] for entry in answer.json] == files


def test_predict_names_as_many_classes_as_asked_and_there_are(finished: World) -> None:
    file = finished.photos / "val" / "dark" / "0.png"
    for top, expected in ((1, 1), (2, 2), (9, 2)):
        entry = call("predict", finished.run, file, "--top", top, "--json").json[0]
        assert len(entry["top"]) == expected
        assert entry["top"][0] == {"class": entry["class"], "probability": entry["probability"]}


def test_csv_of_predict_quotes_what_needs_it(finished: World, tmp_path: Path) -> None:
    odd = tmp_path / 'a "b", c;\td.png'
    write_picture(odd, 60)
    answer = call("predict", finished.run, odd, "--csv", "--top", 2)
    rows = list(csv.reader(io.StringIO(answer.out)))
    assert rows[0] == ["file", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert rows[1][0] == str(odd)
    assert float(rows[1][2]) + float(rows[1][4]) == pytest.approx(1.0, abs=1e-5)


def test_csv_of_more_places_than_classes_has_no_empty_headings(finished: World) -> None:
    answer = call("predict", finished.run, finished.photos / "val", "--csv", "--top", 99)
    assert len({len(row) for row in csv.reader(io.StringIO(answer.out))}) == 1


def test_csv_of_one_class_has_plain_headings(finished: World) -> None:
    answer = call("predict", finished.run, finished.photos / "val", "--csv")
    assert answer.out.splitlines()[0] == "file,class,probability,error"
    assert len(answer.out.splitlines()) == 9


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_one_broken_picture_does_not_stop_the_others(
    finished: World, tmp_path: Path, form: str
) -> None:
    good = [write_picture(tmp_path / f"{n}.png", 60) for n in range(3)]
    broken = tmp_path / "1.jpg"
    broken.write_text("this is text")
    answer = call("predict", finished.run, good[0], broken, *good[1:], form)
    assert answer.status == 1
    assert "1.jpg" in answer.message
    assert sum(answer.out.count(f"{n}.png") for n in range(3)) == 3
    if form == "--json":
        assert "1.jpg" not in answer.out
        return
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert [row["file"] for row in rows] == [str(f) for f in (good[0], broken, *good[1:])]
    assert [bool(row["class"]) for row in rows] == [True, False, True, True]
    assert [row["error"] for row in rows if not row["class"]] == [
        answer.message.removeprefix("Error: ").rstrip()
    ]
    assert not any(row["error"] for row in rows if row["class"])


def test_csv_of_files_of_which_none_can_be_read_has_a_row_for_each(finished: World) -> None:
    answer = call("predict", finished.run, "a.jpg", "b.jpg", "--csv", "--top", 2)
    rows = list(csv.reader(io.StringIO(answer.out)))
    assert answer.status == 1
    assert [row[:-1] for row in rows[1:]] == [[name, "", "", "", ""] for name in ("a.jpg", "b.jpg")]
    assert all("there is no such file" in row[-1] for row in rows[1:])


def test_a_table_of_long_paths_fits_80_columns(finished: World, tmp_path: Path) -> None:
    deep = tmp_path / ("long folder name " * 4) / ("and another " * 6)
    write_picture(deep / "picture.png", 60)
    answer = call("predict", finished.run, deep)
    assert answer.status == 0
    assert widest(answer.out) <= 80
    assert "picture.png" in answer.out.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize(
    "name",
    ["[red]ant[/red].png", "[red].png", "蚂蚁.png", "two words.png", "two\nlines.png", "'.png"],
)
def test_any_file_name_comes_out_as_it_is(finished: World, tmp_path: Path, name: str) -> None:
    file = write_picture(tmp_path / name, 60)
    assert call("predict", finished.run, file, "--json").json[0]["file"] == str(file)
    assert list(csv.reader(io.StringIO(call("predict", finished.run, file, "--csv").out)))[1][
        0
    ] == str(file)
    answer = call("predict", finished.run, file)
    assert answer.status == 0
    if "\n" not in name:
        assert name in answer.out.replace("\n", "") or name.split()[0] in answer.out


@pytest.mark.parametrize(
    "names", [("[bold]", "[red]"), ("蚂蚁", "été"), ("fire ant", "honey bee"), ("a\nb", "c,d")]
)
def test_any_class_name_goes_through_all_verbs(world: World, names: tuple[str, str]) -> None:
    from frostline.runs import open_run

    photos = write_pictures(world.root / "odd", names=names, train=3, val=2)
    answer = world.train(photos=photos)
    assert answer.status == 0, answer.err
    if "\n" not in names[0]:
        assert all(answer.out.count(name) >= 3 for name in names)
    assert open_run(world.run).settings.data.classes == tuple(sorted(names))
    evaluated = call("evaluate", world.run, photos, "--json").json
    assert {c["name"] for c in evaluated["per_class"]} == set(names)
    predicted = call("predict", world.run, photos / "val", "--top", 2, "--json").json
    assert {place["class"] for place in predicted[0]["top"]} == set(names)


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]], ids=["table", "json", "csv"])
def test_a_file_name_that_is_no_unicode_does_not_stop_predict(
    start: Start, finished: World, tmp_path: Path, form: list[str]
) -> None:
    file = os.fsencode(tmp_path) + b"/\xff.png"
    picture = write_picture(tmp_path / "a.png", 60)
    try:
        os.rename(picture, file)  # noqa: PTH104 - a name as bytes
    except OSError:
        pytest.skip("this file system takes no such name")
    strict = "import sys; sys.stdout.reconfigure(encoding='utf-8', errors='strict')"  # as in most
    arguments = ["predict", finished.run, os.fsdecode(file), *form]
    found = start(arguments, dict(os.environ), code=strict)
    assert found.returncode == 0, found.stderr


def test_no_color_is_heeded_and_a_pipe_has_none(start: Start, finished: World) -> None:
    for extra in ({}, {"NO_COLOR": "1"}):
        found = start(["verify", finished.run], {**os.environ, **extra})
        assert found.returncode == 0
        assert ESCAPE not in found.stdout + found.stderr


def test_every_error_has_a_status_that_is_documented() -> None:
    import frostline.cli as cli

    def below(kind: type[FrostlineError]) -> set[int]:
        return {kind.exit_status}.union(*map(below, kind.__subclasses__()))

    assert below(FrostlineError) == {1, 3}
    assert "0 done, 1 something the user can fix, 2 wrong usage, 3 a promise" in str(cli.__doc__)
