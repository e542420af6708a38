"""`frostline doctor`: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

import frostline as fl
from small_world import call, write_net, write_picture, write_pictures

OWN = """
import torch
from torch import nn

from frostline.preprocessing import Preprocessing

SIZE = Preprocessing(resize=16, crop=(16, 16))


def layers(*last):
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8, 2), *last), SIZE


def softmax():
    return layers(nn.Softmax(dim=1))


def dead():
    model, size = layers()
    nn.init.constant_(model[0][0].bias, -100.0)
    return model, size


def wrong():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), SIZE
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    return write_net(tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_a_sound_set_up_ends_with_status_0(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    answer = call("doctor", net, "--data", data, "--lr", "1e-3")
    assert answer.out == f"{net}, on 8 pictures of {data}\n\nNothing found.\n"
    assert (answer.status, answer.err) == (0, "")


def test_what_was_not_given_is_told_by_its_option(net: str) -> None:
    answer = call("doctor", net)
    assert f"{net}, on 4 pictures of noise" in answer.out
    assert "Nothing found. Not given, so not looked at: --data, --lr." in answer.out


def test_a_misspelt_selector_ends_with_status_1_and_the_option_that_fixes_it(net: str) -> None:
    answer = call("doctor", net, "--freeze", "featurs")
    assert answer.status == 1
    assert "error: no-match" in answer.out
    assert "--freeze 'features'" in " ".join(answer.out.split())
    assert answer.err == ""


def test_a_warning_ends_with_status_0(net: str) -> None:
    answer = call("doctor", net, "--lr", "0.5")
    assert answer.status == 0
    assert "warning: learning-rate" in answer.out
    assert "--lr 0.003" in answer.out


def test_the_rate_is_judged_for_what_would_train(net: str) -> None:
    assert "pretrained layers" in call("doctor", net, "--train", "middle", "--lr", "0.05").out
    assert "learning-rate" not in call("doctor", net, "--freeze", "features", "--lr", "1e-4").out


def test_a_note_says_what_the_backward_pass_crosses(net: str) -> None:
    answer = call("doctor", net, "--train", "features", "--json")
    assert answer.status == 0
    assert [f["code"] for f in answer.json["findings"]] == ["frozen-above-trainable"]


def test_json_is_one_document_with_the_status_of_the_worst(net: str) -> None:
    answer = call("doctor", net, "--freeze", "all", "--json")
    assert answer.status == 1
    assert (answer.json["ok"], answer.json["worst"]) == (False, "error")
    assert (answer.json["model"], answer.json["example"]) == (net, "4 pictures of noise")
    assert answer.json["findings"][0]["code"] == "nothing-trainable"
    assert answer.json["not_given"] == ["--data", "--lr"]


def test_a_head_stacked_on_logits_is_told_and_a_hidden_layer_fixes_it(own: str) -> None:
    stacked = call("doctor", f"{own}:layers", "--on", "logits", "--classes", "2")
    assert "head reads backbone.1 with no nonlinearity" in stacked.out
    hidden = call(
        "doctor", f"{own}:layers", "--on", "logits", "--classes", "2", "--head", "10", "--json"
    )
    told = [f["names"] for f in hidden.json["findings"] if f["code"] == "stacked-linear"]
    assert told == []
    replaced = call("doctor", f"{own}:layers", "--on", "classifier", "--json")
    assert replaced.json["findings"] == []


def test_a_model_of_ones_own_is_looked_at_as_it_ends(own: str) -> None:
    answer = call("doctor", f"{own}:softmax", "--on", "keep", "--json")
    assert "softmax-output" in [f["code"] for f in answer.json["findings"]]


def test_dead_layers_are_named(own: str) -> None:
    answer = call("doctor", f"{own}:dead", "--train", "0", "--on", "keep")
    assert answer.status == 1
    assert "error: zero-gradient" in answer.out
    assert "the ReLU at 0.1 gave nothing but zeros" in " ".join(answer.out.split())


def test_a_forward_that_fails_is_a_finding_and_no_traceback(own: str) -> None:
    answer = call("doctor", f"{own}:wrong", "--on", "keep")
    assert answer.status == 1
    assert "error: forward-failed" in answer.out
    assert "Traceback" not in answer.out + answer.err


def test_a_classifier_of_other_data_that_is_kept_is_told(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    answer = call("doctor", net, "--on", "keep", "--data", data)
    assert "5 logits for 2 classes" in answer.out
    assert "--on classifier" in " ".join(answer.out.split())


def test_validation_pictures_in_the_training_data_are_named(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    held_out = data / "val" / "dark" / "0.png"
    held_out.write_bytes((data / "train" / "dark" / "3.png").read_bytes())
    answer = call("doctor", net, "--data", data, "--json")
    assert [f["code"] for f in answer.json["findings"]] == ["same-data"]
    assert answer.json["findings"][0]["names"] == [str(held_out)]


def test_pictures_that_cannot_be_read_are_passed_over(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    (data / "train" / "dark" / "0.png").write_bytes(b"no picture")
    answer = call("doctor", net, "--data", data, "--json")
    assert answer.json["example"].startswith("8 pictures of")
    assert [finding["code"] for finding in answer.json["data"]] == ["broken-image"]
    assert "Warning: 1 image cannot be read and will be left out:" in answer.err


def test_data_that_training_would_refuse_is_refused(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    for picture in (data / "train" / "dark").iterdir():
        picture.write_bytes(b"no picture")
    answer = call("doctor", net, "--data", data)
    assert answer.status == 1
    assert "no usable training images of dark" in answer.message


def test_a_table_is_read_by_the_columns_given(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    pictures = sorted((data / "train").rglob("*.png"))
    rows = [f"train/{path.parent.name}/{path.name},{path.parent.name}" for path in pictures]
    (data / "labels.csv").write_text("\n".join(["image,dx", *rows]))
    columns = ("--file-column", "image", "--label-column", "dx")
    answer = call("doctor", net, "--data", data / "labels.csv", *columns, "--json")
    assert answer.status == 0, answer.err


@pytest.mark.parametrize("verb", ["doctor", "estimate"])
def test_columns_without_data_are_wrong_usage(net: str, verb: str) -> None:
    answer = call(verb, net, "--label-column", "dx")
    assert answer.status == 2
    assert "columns are those of a table; give it with --data" in " ".join(answer.err.split())


def test_data_without_a_readable_picture_is_an_error(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", train=1)
    for picture in (data / "train").rglob("*.png"):
        picture.write_bytes(b"no picture")
    answer = call("doctor", net, "--data", data)
    assert answer.status == 1
    assert "Error: no training picture can be read." in answer.message


def test_a_plan_is_checked_with_its_later_phases(net: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    fl.Plan([fl.Phase(epochs=1), fl.Phase(train="midle", epochs=1)]).save(file)
    answer = call("doctor", net, "--plan", file)
    assert answer.status == 1
    assert "phase 2: 'midle' matches no parameter" in answer.out
    fl.Plan([fl.Phase(epochs=1), fl.Phase(train="middle | head", epochs=1)]).save(file)
    told = call("doctor", net, "--plan", file)
    assert told.status == 0
    assert "Nothing found. Not given, so not looked at: --data." in told.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--freeze", "head", "--train", "head"), "give one of --freeze and --train"),
        (("--plan", "plan.toml", "--lr", "1"), "a plan's phases have rates of their own"),
        (("--lr", "0"), "a learning rate is above 0"),
        (("--freeze", "head &"), "it ends where a term was expected"),
        (("--on", "keep", "--head", "5"), "the classifier is kept"),
    ],
)
def test_wrong_usage_ends_with_status_2(net: str, options: tuple[str, ...], message: str) -> None:
    answer = call("doctor", net, *options)
    assert answer.status == 2
    assert message in " ".join(answer.err.replace("│", "").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19",), "resnet18"),
        (("NET", "--data", "nowhere"), "no data set at"),
        (("NET", "--plan", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_is_not_there_is_one_message(
    net: str, arguments: tuple[str, ...], message: str
) -> None:
    answer = call("doctor", *(net if word == "NET" else word for word in arguments))
    assert answer.status == 1
    assert message in answer.message


def test_a_picture_of_the_example_is_not_changed(net: str, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    picture = write_picture(data / "train" / "dark" / "9.png", 60)
    before = picture.read_bytes()
    call("doctor", net, "--data", data)
    assert picture.read_bytes() == before
