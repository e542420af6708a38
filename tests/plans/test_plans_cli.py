"""`frostline plan`: what it prints where, what it writes, what it refuses and with which status."""

from __future__ import annotations

from pathlib import Path

import pytest

import frostline as fl
from frostline.models import load_model
from small_world import Answer, call, write_net


@pytest.fixture
def net(tmp_path: Path) -> str:
    return write_net(tmp_path)


def refused(answer: Answer, *words: str, status: int) -> None:
    assert answer.status == status
    assert answer.out == ""
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err


KINDS = [
    ("head_only", ["--epochs", 3, "--lr", 0.1], {"epochs": 3, "lr": 0.1}),
    ("gradual", ["--stages", 2, "--epochs", 3, "--lr", 0.1], {"stages": 2, "epochs_each": 3}),
    ("lp_ft", ["--epochs", 3, "--lr", 0.1], {"tune_epochs": 3, "lr": 0.1}),
    ("surgical", ["--stage", -2, "--epochs", 3, "--lr", 0.1], {"stage": -2, "epochs": 3}),
    ("full", ["--epochs", 3, "--lr", 0.1], {"epochs": 3}),
    ("norm_and_bias", ["--epochs", 3, "--lr", 0.1], {"epochs": 3}),
]


@pytest.mark.parametrize(("kind", "options", "meant"), KINDS)
def test_the_plan_on_standard_output_is_the_one_python_makes(
    net: str, kind: str, options: list[object], meant: dict[str, object]
) -> None:
    model = load_model(net, weights="none", classes=2).model
    makers = {
        "head_only": fl.Plan.head_only,
        "gradual": fl.Plan.gradual,
        "lp_ft": fl.Plan.lp_ft,
        "surgical": fl.Plan.surgical,
        "full": fl.Plan.full,
        "norm_and_bias": fl.Plan.norm_and_bias,
    }
    answer = call("plan", net, "--kind", kind, *options)
    assert answer.status == 0
    assert fl.Plan.loads(answer.out) == makers[kind](model, **{"lr": 0.1, **meant})
    assert "parameters" in answer.err


def test_without_options_the_defaults_are_those_of_python(net: str) -> None:
    model = load_model(net, weights="none", classes=2).model
    answer = call("plan", net, "--kind", "gradual")
    assert fl.Plan.loads(answer.out) == fl.Plan.gradual(model)


def test_a_written_plan_is_read_back_and_the_next_command_is_told(net: str, tmp_path: Path) -> None:
    out = tmp_path / "my plan.toml"
    answer = call("plan", net, "--kind", "lp_ft", "--out", out, "--on", "logits", "--head", "6")
    assert answer.status == 0
    model = load_model(net, weights="none", classes=2, hidden=(6,), on="logits").model
    assert fl.Plan.load(out) == fl.Plan.lp_ft(model)
    assert f"{fl.select(model, 'head').numel}" in answer.out
    assert (
        f"next: frostline train DATA --model {net} --on logits --head 6 --plan '{out}'"
        in answer.out
    )
    assert answer.err == ""


def test_a_kept_classifier_is_planned_for_as_it_is(net: str) -> None:
    answer = call("plan", net, "--kind", "head_only", "--on", "keep", "--json")
    assert answer.json["trained"][0]["parameters"] == 8 * 5 + 5


def test_an_existing_file_is_left_alone(net: str, tmp_path: Path) -> None:
    out = tmp_path / "plan.toml"
    out.write_text("mine")
    answer = call("plan", net, "--kind", "full", "--out", out)
    refused(answer, "plan.toml is there already. Choose another --out", status=1)
    assert out.read_text() == "mine"


def test_json_is_one_document_with_the_plan_and_what_it_trains(net: str, tmp_path: Path) -> None:
    out = tmp_path / "plan.toml"
    answer = call("plan", net, "--kind", "full", "--json", "--out", out)
    document = answer.json
    assert fl.Plan(document["phases"]) == fl.Plan.load(out)
    (trained,) = document["trained"]
    assert trained["phase"] == "phase 1 (all)"
    assert trained["share"] == 1.0
    assert (document["warnings"], document["file"]) == ([], str(out))


def test_a_warning_goes_to_standard_error(net: str) -> None:
    answer = call("plan", net, "--kind", "head_only", "--lr", 3)
    assert answer.status == 0
    assert "Warning: phase 1 (head): a learning rate of 3 for " in answer.err
    assert fl.Plan.loads(answer.out)[0].lr == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Missing option '--kind'"),
        (["--kind", "partial"], "'partial' is not one of"),
        (["--kind", "surgical"], "say which stage trains beside the head, as --stage 0"),
        (["--kind", "full", "--stage", 1], "only --kind surgical takes it, and this is full"),
        (["--kind", "lp_ft", "--stages", 1], "only --kind gradual takes it, and this is lp_ft"),
        (["--kind", "gradual", "--stages", 0], "--stages"),
        (["--kind", "full", "--epochs", 0], "--epochs"),
        (["--kind", "full", "--lr", 0], "lr=0.0: input should be greater than 0"),
        (["--kind", "full", "--lr", "nan"], "lr=nan: input should be "),
        (["--kind", "full", "--head", "wide"], "'wide' is no list of widths"),
    ],
)
def test_wrong_usage_has_status_two(net: str, options: list[object], told: str) -> None:
    refused(call("plan", net, *options), told, status=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--kind", "gradual", "--stages", 99], "stages=99 asks for what Net does not have"),
        (["--kind", "surgical", "--stage", -1], "stage=-1 of Net is the head"),
        (["--kind", "surgical", "--stage", 99], "'stage:99' names no stage of Net"),
    ],
)
def test_what_the_model_does_not_have_has_status_one(
    net: str, options: list[object], told: str
) -> None:
    answer = call("plan", net, *options)
    refused(answer, status=1)
    assert told in answer.message


def test_an_unknown_model_names_the_nearest() -> None:
    answer = call("plan", "resnet81", "--kind", "full")
    refused(answer, status=1)
    assert "resnet18" in answer.message


def test_nothing_is_downloaded(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert call("plan", "squeezenet1_1", "--kind", "head_only").status == 0
    assert call("plan", net, "--kind", "head_only").status == 0
