"""Any task from the command line: train looks at the targets, the other verbs tell the answers."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from frostline.cli import app
from frostline.errors import DataError
from frostline.runs import open_run
from small_world import Answer, call, write_net, write_picture
from text_world import write_bert, write_sentence_encoder

MASKED = """
from torch import nn

from frostline.preprocessing import Preprocessing


def net():
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))
    model.add_module("classifier", nn.Conv2d(8, 21, 1))
    return model, Preprocessing(resize=16, crop=(16, 16))
"""


@dataclass(frozen=True)
class World:
    """A folder with one data set of each kind, and a model for each."""

    root: Path

    def run(self, data: str, model: object, *options: object) -> Answer:
        """Train for an epoch, into a folder of the data's name."""
        return call(
            *("train", self.root / data, "--model", model, "--weights", "none"),
            *("--epochs", 1, "--features", "off", "--out", self.root / f"runs/{data}", *options),
        )

    def of(self, data: str) -> Path:
        return self.root / "runs" / data


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("tasks")
    rows: dict[str, list[tuple[object, ...]]] = {
        "wide.csv": [("file", "split", "light", "even")],
        "numbers.csv": [("file", "split", "label")],
        "labels.csv": [("file", "split", "label")],
    }
    for number in range(12):
        level, part = 20 * number, "val" if number % 3 == 2 else "train"
        picture = write_picture(root / "pictures" / f"{number}.png", level)
        name = f"pictures/{number}.png"
        rows["numbers.csv"].append((name, part, level / 100))
        tags = [tag for tag, holds in (("light", level > 120), ("even", number % 2 == 0)) if holds]
        rows["labels.csv"].append((name, part, "|".join(tags)))
        rows["wide.csv"].append((name, part, int("light" in tags), int("even" in tags)))
        masked = root / "masked" / part
        for folder in ("images", "masks"):
            (masked / folder).mkdir(parents=True, exist_ok=True)
        grey = np.asarray(Image.open(picture).convert("L"))
        Image.open(picture).save(masked / "images" / f"{number}.png")
        Image.fromarray((grey > 110).astype(np.uint8)).save(masked / "masks" / f"{number}.png")
    for name, lines in rows.items():
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    (root / "masked.py").write_text(MASKED)
    made = World(root)
    assert made.run("numbers.csv", write_net(root)).status == 0
    assert made.run("labels.csv", write_net(root), "--thresholds", "best").status == 0
    wide = made.run("wide.csv", write_net(root), "--label-column", "light,even")
    assert wide.status == 0, wide.err
    assert made.run("masked", f"{root / 'masked.py'}:net", "--loss", "both").status == 0
    return made


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("data", "changed"), [("numbers.csv", "numbers.csv"), ("masked", "masked/train/masks/0.png")]
)
def test_changed_targets_are_refused_on_a_resume(world: World, data: str, changed: str) -> None:
    file = world.root / changed
    before = file.read_bytes()
    if file.suffix == ".png":
        Image.fromarray(1 - np.asarray(Image.open(file))).save(file)
    else:
        file.write_bytes(before.replace(b"0.png,train,0.0", b"0.png,train,0.5"))
    try:
        answer = call("train", "--resume", world.of(data), "--epochs", 2)
    finally:
        file.write_bytes(before)
    assert answer.status == 1
    told = f"cannot resume: the labels, targets or masks in {world.root / data} are not those that"
    assert told in " ".join(answer.err.split())


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [
        ("numbers.csv", "regression", "the column label holds numbers with fractions"),
        ("labels.csv", "multilabel", "the column label holds lists of labels"),
        ("masked", "segmentation", "there are masks beside images"),
    ],
)
def test_train_sees_from_the_targets_what_is_learnt(
    world: World, data: str, kind: str, told: str, tmp_path: Path
) -> None:
    kept = (world.of(data) / "run.toml").read_text()
    assert f'kind = "{kind}"' in kept
    net = f"{world.root / 'masked.py'}:net" if data == "masked" else write_net(tmp_path)
    answer = call("doctor", net, "--data", world.root / data, "--json")
    assert f"{kind}, since {told}" in answer.err
    assert answer.json["example"].startswith("8 pictures of")


def test_a_regression_is_judged_and_told_in_numbers(world: World, tmp_path: Path) -> None:
    table, data = tmp_path / "judged.csv", world.root / "numbers.csv"
    assert "mean = []" not in (world.of("numbers.csv") / "run.toml").read_text()  # it is scaled
    found = call("evaluate", world.of("numbers.csv"), data, "--csv", table, "--json").json
    rows = read(table.read_text())
    assert found["samples"] == len(rows) == 4
    errors = [abs(float(r["true_label"]) - float(r["predicted_label"])) for r in rows]
    assert errors == sorted(errors, reverse=True)
    assert found["mae"] == pytest.approx(sum(errors) / 4, rel=1e-4)
    (one,) = call("predict", world.of("numbers.csv"), rows[0]["file"], "--json").json
    assert one["label"] == pytest.approx(float(rows[0]["predicted_label"]), rel=1e-4)
    out = call("predict", world.of("numbers.csv"), rows[0]["file"], "--csv").out
    assert read(out)[0]["label"] == rows[0]["predicted_label"]


def test_what_the_outputs_of_a_merged_regression_are_is_said(world: World, tmp_path: Path) -> None:
    run = world.of("numbers.csv")
    merged = call("merge", run, "--out", tmp_path / "whole.pth")
    refused = call("export", run, "--to", "onnx", "--out", tmp_path / "a.onnx")
    for said in (" ".join(merged.out.split()), refused.err):
        found = re.search(r"from the targets' mean: label = (\S+) \* output \+ (\S+)\.", said)
        assert found, said
        kept = tomllib.loads((run / "run.toml").read_text())["task"]
        assert [*map(float, found.groups())] == pytest.approx([*kept["std"], *kept["mean"]], 1e-5)


def test_labels_that_hold_are_told_with_each_ones_probability(world: World, tmp_path: Path) -> None:
    table, page = tmp_path / "judged.csv", tmp_path / "page.html"
    run, data = world.of("labels.csv"), world.root / "labels.csv"
    answer = call("evaluate", run, data, "--csv", table, "--report", page)
    assert answer.status == 0, answer.err
    first = read(table.read_text())[0]
    assert {"true_labels", "predicted_labels", "predicted_probability_light"} < set(first)
    assert "Where it was furthest off" in page.read_text()
    (one,) = call("predict", run, first["file"], "--json").json
    assert "|".join(one["labels"]) == first["predicted_labels"]
    assert set(one["probability"]) == {"light", "even"}


def test_label_columns_are_known_by_name_in_any_order(world: World) -> None:
    run, data = world.of("wide.csv"), world.root / "wide.csv"
    one, other = (
        call("evaluate", run, data, "--label-column", columns, "--json").json
        for columns in ("light,even", "even,light")
    )
    assert one == other
    more = world.root / "more.csv"
    more.write_text(data.read_text().replace("light,even", "light,odd"))
    for columns, told in (("light,light", "Name each once"), ("light,odd", "the run learnt")):
        answer = call("evaluate", run, more, "--label-column", columns)
        assert (answer.status, told in answer.message) == (1, True)


def test_masks_that_hold_0_and_255_are_read_as_the_runs_were(world: World, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / "test" / part).mkdir(parents=True)
    write_picture(tmp_path / "test" / "images" / "1.png", 100)
    mask = np.zeros((18, 18), np.uint8)
    mask[9:] = 255  # no class, where the run's masks held 0 and 1
    Image.fromarray(mask).save(tmp_path / "test" / "masks" / "1.png")
    answer = call("evaluate", world.of("masked"), tmp_path / "test", "--json")
    assert answer.status == 0, answer.err
    found = answer.json
    assert found["per_region"][0]["share"] == pytest.approx(1)


def test_masks_are_written_as_the_network_saw_the_pictures(world: World, tmp_path: Path) -> None:
    run, pictures = world.of("masked"), world.root / "masked" / "val" / "images"
    answer = call("predict", run, pictures, "--masks", tmp_path / "masks", "--json")
    for one in answer.json:
        mask = np.asarray(Image.open(one["mask"]))
        assert (mask.shape, mask.dtype, mask.max() <= 1) == ((16, 16), np.uint8, True)
        assert one["share"].get("1", 0.0) == pytest.approx(float((mask == 1).mean()))
    again = call("predict", run, pictures, "--masks", tmp_path / "masks")
    assert (again.status, "is not an empty folder" in again.err) == (2, True)
    judged = call("evaluate", run, world.root / "masked", "--json").json
    assert 0 <= judged["mean_iou"] <= 1
    assert "Where it was furthest off" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("data", "options", "status", "told"),
    [
        ("numbers.csv", ["--thresholds", "best"], 2, "regression has no thresholds"),
        ("numbers.csv", ["--loss", "mea"], 2, "regression has no loss 'mea' (nearest: 'mae')"),
        ("numbers.csv", ["--task", "tokens"], 1, "the task tokens is one of texts"),
        ("numbers.csv", ["--task", "segmentation"], 1, "no column mask"),
        ("labels.csv", ["--task", "regression"], 1, "no label. Fill it in"),
        ("masked", ["--augment", "views:2"], 1, "shows parts of the pictures, and not of their"),
    ],
)
def test_what_a_task_cannot_be_is_refused_in_a_line(
    world: World, tmp_path: Path, data: str, options: list[str], status: int, told: str
) -> None:
    net = f"{world.root / 'masked.py'}:net" if data == "masked" else write_net(tmp_path)
    out = ("--out", tmp_path / "run", "--features", "off")
    answer = call("train", world.root / data, "--model", net, *out, *options)
    assert (answer.status, told in " ".join(answer.err.split())) == (status, True), answer.err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run that learnt from a table of texts, on stored features."""
    root = tmp_path_factory.mktemp("texts")
    write_sentence_encoder(root / "encoder")
    lines = ["review,stars"]
    lines += [
        f'"{word} film{", very" * (n % 3)} {n}",{star}'
        for n in range(12)
        for word, star in (("good", "up"), ("bad", "down"))
    ]
    (root / "reviews.csv").write_text("\n".join(lines) + "\n")
    answer = call(
        *("train", root / "reviews.csv", "--model", f"hf:{root / 'encoder'}", "--epochs", 2),
        *("--features", root / "features", "--out", root / "run"),
    )
    assert answer.status == 0, answer.err
    return World(root)


def test_texts_are_trained_on_judged_and_proven_as_pictures_are(
    texts: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = texts.root / "run", tmp_path / "judged.csv"
    monkeypatch.chdir(tmp_path)  # a run knows its encoder from anywhere
    assert call("verify", run).status == 0
    (texts.root / "others.csv").write_text("review,stars\ngood plot,up\n,up\ndull plot,down\n")
    found = call("evaluate", run, texts.root / "others.csv", "--csv", table, "--json")
    assert found.json["samples"] == 2
    assert "empty: others.csv line 3" in found.err
    assert {row["file"] for row in read(table.read_text())} == {
        "others.csv line 2",
        "others.csv line 4",
    }
    assert "down" in (run / "report.html").read_text()


def test_predict_writes_a_column_beside_a_table_of_texts(texts: World, tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text('id,review,class\n1,good film,x\n2,,y\n3,"bad, dull",z\n')
    rows = read(call("predict", texts.root / "run", more, "--csv").out)
    assert [(row["id"], row["class"], row["error"]) for row in rows] == [
        ("1", "x", ""),
        ("2", "y", "no text"),
        ("3", "z", ""),
    ]
    alone = call("predict", texts.root / "run", "good film", "--json").json
    assert alone[0]["class"] == rows[0]["predicted_class"]
    assert sum(alone[0]["probabilities"].values()) == pytest.approx(1)
    typed = call("predict", texts.root / "run", "-", stdin="good film\n\nbad, dull\n")
    assert "bad, dull" in typed.out
    assert "1 of 3 texts are empty" in typed.err
    for lost in ("more.txt", "mor.csv"):
        answer = call("predict", texts.root / "run", tmp_path / lost)
        assert (answer.status, lost in answer.message) == (1, True)
    assert "is a folder. Give the tables" in call("predict", texts.root / "run", tmp_path).message
    run = open_run(texts.root / "run")
    for wrong, told in (("good film", "list of texts"), ([("a", "b")], "single"), ([" "], "empty")):
        with pytest.raises(DataError, match=told):
            run.predict(wrong)


def test_labels_of_texts_with_fractions_are_a_regression(texts: World, tmp_path: Path) -> None:
    data, model = tmp_path / "scores.csv", f"hf:{texts.root / 'encoder'}"
    data.write_text("".join(["text,score\n", *(f"good film {n},{n / 4}\n" for n in range(12))]))
    out = ("--epochs", 1, "--features", "off", "--out", tmp_path / "run")
    answer = call("train", data, "--model", model, *out)
    assert "regression, since the column score holds numbers with fractions" in answer.err
    assert answer.status == 0, answer.err
    (found,) = call("predict", tmp_path / "run", "good film", "--json").json
    assert set(found) == {"text", "score"}
    judged = call("evaluate", tmp_path / "run", data, "--json").json
    assert judged["samples"] == 2  # those held out
    assert 0 <= judged["mae"] < 10
    data.write_text(data.read_text() + "no score,nan\n")
    answer = call("train", data, "--model", model, "--out", tmp_path / "gap")
    assert "regression, since the column score holds numbers with fractions" in answer.err
    assert "scores.csv line 14 has the label 'nan', which is no number" in answer.message


def test_an_export_of_texts_is_refused_for_what_it_is(texts: World, tmp_path: Path) -> None:
    answer = call("export", texts.root / "run", "--to", "onnx", "--out", tmp_path / "run.onnx")
    assert answer.status == 1
    assert "classifies texts, and what is exported are classifiers of pictures" in answer.message


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--text", "revew"], 1, "revew"),
        (["--label", "score"], 1, "score"),
        (["--task", "segmentation"], 1, "Use classification, regression or tokens"),
        (["--task", "regression"], 1, "which is no number"),
        (["--max-tokens", "64"], 1, "the model takes 32"),
        (["--augment", "views:2"], 1, "texts have no views"),
    ],
)
def test_what_texts_cannot_be_is_refused_in_a_line(
    texts: World, tmp_path: Path, options: list[str], status: int, told: str
) -> None:
    data, model = texts.root / "reviews.csv", f"hf:{texts.root / 'encoder'}"
    answer = call("train", data, "--model", model, "--out", tmp_path / "run", *options)
    assert (answer.status, told in answer.message) == (status, True), answer.err
    assert not (tmp_path / "run").exists()


def test_verbs_that_look_first_take_texts(texts: World, tmp_path: Path) -> None:
    model = f"hf:{write_bert(tmp_path / 'bert', head='BertForSequenceClassification')}"
    found = call("doctor", model, "--data", texts.root / "reviews.csv", "--json").json
    assert "8 texts of" in found["example"]
    cost: dict[str, Any] = json.loads(call("estimate", model, "--json").out)
    assert cost["phases"][0]["step"]["parameters"] > 0
    shown = call("inspect", model, "--train", "classifier", "--json").json
    assert 0 < shown["trainable"] < shown["total"]


def test_a_run_of_texts_says_how_it_is_repeated_and_used(texts: World) -> None:
    report = open_run(texts.root / "run").report()
    words = shlex.split(report.repeat.replace("\\\n", " "))
    assert "--text-column" in words
    group: Any = typer.main.get_command(app)
    with group.get_command(None, "train").make_context("train", words[2:]) as context:
        assert context.params["text_column"] == "review"
    assert report.use_shell.endswith("TEXT...")
    assert 'run.predict(["a text"])' in report.use_python
