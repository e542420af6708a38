"""The command line under a launcher: one run, one voice, the answers of one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from ranks import on_ranks

from small_world import Answer, call, write_net, write_pictures

RESTARTABLE = {"TORCHELASTIC_MAX_RESTARTS": "3"}
RESTARTED = {**RESTARTABLE, "TORCHELASTIC_RESTART_COUNT": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, pictures and a run of one process."""
    root = tmp_path_factory.mktemp("world")
    write_net(root)
    write_pictures(root / "data", train=9, val=4)
    answer = call(*training(root), "--out", root / "alone")
    assert answer.status == 0, answer.err
    return root


def training(root: Path) -> tuple[object, ...]:
    net = ("--model", f"{root / 'small_net.py'}:net", "--weights", "none", "--train", "head")
    speed = ("--epochs", 2, "--lr", 0.01, "--batch-size", 4, "--device", "cpu")
    return (
        "train",
        root / "data",
        *net,
        *speed,
        "--features",
        root / "store",
        "--precision",
        "exact",
    )


def asked(arguments: Sequence[object]) -> Answer:
    return call(*arguments)


def test_a_run_is_written_and_told_once(world: Path, tmp_path: Path) -> None:
    first, second = on_ranks(asked, (*training(world), "--out", tmp_path / "run", "--json"))
    assert (first.status, second.status) == (0, 0), first.err
    assert (second.out, second.err) == ("", "")
    alone = [json.loads(line) for line in (world / "alone/metrics.jsonl").read_text().splitlines()]
    for found, known in zip(first.json["history"], alone, strict=True):
        for name in ("train_loss", "val_loss", "val_accuracy", "lr"):
            assert found[name] == pytest.approx(known[name], rel=1e-6)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        p.name for p in (world / "alone").iterdir()
    }
    assert call("verify", tmp_path / "run").status == 0


def test_evaluate_and_predict_say_what_one_process_says(world: Path, tmp_path: Path) -> None:
    run, data = world / "alone", world / "data"
    table = tmp_path / "table.csv"
    evaluate = ("evaluate", run, data, "--json", "--device", "cpu")
    first, second = on_ranks(asked, (*evaluate, "--csv", table))
    alone = call(*evaluate).json
    found = {name: value for name, value in first.json.items() if name != "csv"}
    assert found.pop("loss") == pytest.approx(alone.pop("loss"))
    assert (found, second.out) == (alone, "")
    assert len(table.read_text().splitlines()) == 1 + alone["samples"]
    predict = ("predict", run, data / "val/dark", "--csv", "--device", "cpu")
    first, second = on_ranks(asked, predict, size=3)[:2]
    assert first.out == call(*predict).out
    assert second.out == ""


def test_a_restarted_group_goes_on_with_its_run(world: Path, tmp_path: Path) -> None:
    arguments = (*training(world), "--out", tmp_path / "run")
    assert on_ranks(asked, arguments, environment=RESTARTABLE)[0].status == 0
    metrics = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert on_ranks(asked, arguments, environment=RESTARTED)[0].status == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == metrics


def test_a_mistake_is_told_once(world: Path) -> None:
    taken = (*training(world), "--out", world / "alone")
    first, second = on_ranks(asked, taken)
    assert "already holds a run" in first.message
    assert (second.status, second.err) == (1, "")


def test_a_group_that_may_be_restarted_says_its_folder(world: Path) -> None:
    first = on_ranks(asked, training(world), environment=RESTARTABLE)[0]
    assert "say its folder, --out" in first.message
