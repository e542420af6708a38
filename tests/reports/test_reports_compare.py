"""`frostline compare`: what differs, which figures can be held against each other, and chance."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.records import read_judged
from frostline.records.certainty import mcnemar, paired, share_interval
from frostline.reports.comparing import compare_runs
from report_world import World, page_of
from small_world import call, write_pictures


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"), val=10)
    made.run("one")
    made.run("two", lr=1e-5, epochs=1)
    return made


def test_settings_that_differ_are_told_and_others_are_not(world: World) -> None:
    answer = call("compare", world.root / "one", world.root / "two", "--json")
    assert answer.status == 0
    assert answer.json["settings"] == {
        "training.epochs": ["3", "1"],
        "training.lr": ["0.02", "1e-05"],
    }
    assert answer.json["warnings"] == []


def test_figures_are_those_of_the_best_epochs(world: World) -> None:
    found = call("compare", world.root / "one", world.root / "two", "--json").json["runs"]
    for run in found:
        result = call("report", run["run"], "--json").json
        for figure in ("accuracy", "macro_f1", "loss", "best_epoch", "delta_bytes"):
            assert run[figure] == result[figure]
        assert 0 < run["frozen_share"] < 1
        assert run["validation_samples"] == "same"


def test_runs_are_paired_sample_by_sample(world: World) -> None:
    one, two = (
        read_judged(world.root / name / "best" / "predictions.safetensors")
        for name in ("one", "two")
    )
    gained = int((two.hits & ~one.hits).sum())
    lost = int((one.hits & ~two.hits).sum())
    assert gained + lost
    answer = call("compare", world.root / "one", world.root / "two", "--json")
    found = answer.json["runs"][1]["against_first"]
    assert (found["gained"], found["lost"], found["samples"]) == (gained, lost, 20)
    assert found["difference"] == pytest.approx((gained - lost) / 20)
    assert found["p_value"] == mcnemar(gained, lost)


def test_other_validation_pictures_make_figures_incomparable(world: World, tmp_path: Path) -> None:
    other = World(tmp_path, val=9)
    shutil.rmtree(other.photos / "val")
    write_pictures(other.photos, train=0, val=3)
    extra = other.photos / "val" / "dark" / "0.png"
    extra.write_bytes(extra.read_bytes() + b"\0")
    run = other.run("three")
    answer = call("compare", world.root / "one", run)
    assert answer.status == 0
    assert "was judged by other samples than one: their metrics are not comparable" in answer.err
    assert compare_runs([world.root / "one", run]).runs[1].validation == "different"


def test_a_run_that_has_not_ended_is_named(world: World, tmp_path: Path) -> None:
    stopped = shutil.copytree(world.root / "two", tmp_path / "stopped")
    (stopped / "result.json").unlink()
    (warning,) = call("compare", world.root / "one", stopped, "--json").json["warnings"]
    assert warning.startswith("stopped has no result.json")
    assert "epochs so far" in warning


def test_runs_of_other_classes_are_not_paired(world: World, tmp_path: Path) -> None:
    run = World(tmp_path, names=("cat", "dog")).run("other")
    answer = call("compare", world.root / "one", run, "--json")
    assert "has other classes than one" in answer.json["warnings"][0]
    assert answer.json["runs"][1]["against_first"] is None


def test_python_runs_are_paired_by_name_and_said_to_be_uncertain(tmp_path: Path) -> None:
    inputs, targets = torch.randn(60, 6), torch.arange(60) % 3
    data = TensorDataset(inputs, targets)
    for name, epochs in (("one", 1), ("two", 3)):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        fl.freeze(model, "0")
        fl.fit(model, data, data, out=tmp_path / name, epochs=epochs, device="cpu")
    answer = call("compare", tmp_path / "one", tmp_path / "two", "--json")
    assert "is not known" in answer.json["warnings"][0]
    assert answer.json["runs"][1]["against_first"]["samples"] == 60


def test_tables_are_no_wider_than_80_columns(world: World, tmp_path: Path) -> None:
    runs = [world.root / "one", world.root / "two"]
    for number in range(4):
        runs.append(Path(shutil.copytree(runs[1], tmp_path / f"a run with a long name {number}")))
    for few in (runs[:2], runs):
        answer = call("compare", *few)
        assert answer.status == 0
        assert max(map(len, answer.out.splitlines())) <= 80
        assert "McNemar" in answer.out


def test_the_page_of_a_comparison_has_both_runs_and_no_script(world: World, tmp_path: Path) -> None:
    hostile = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(world.root / "two", hostile)
    answer = call("compare", world.root / "one", hostile, "--html", tmp_path / "page.html")
    assert answer.status == 0, answer.err
    page = page_of(tmp_path / "page.html")
    assert "script" not in page.tags
    assert "Is it chance?" in page.text
    assert len([a for t, a in page.elements if a.get("role") == "img"]) == 2


def test_one_run_alone_is_wrong_usage_and_a_folder_that_is_none_an_error(world: World) -> None:
    assert call("compare", world.root / "one").status == 2
    twice = call("compare", world.root / "one", world.root / "one")
    assert twice.status == 1
    assert "Give two runs or more, each once" in twice.message
    assert call("compare", world.root / "one", world.root / "photos").status == 1


# Statistics against their definitions


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    exact = 2 * sum(math.comb(2001, k) for k in range(951)) / 2**2001
    assert mcnemar(950, 1051) == pytest.approx(exact, rel=0.05)  # by the normal distribution


def test_the_interval_of_a_difference_holds_for_few_samples_too() -> None:
    found = paired(30, 10, 200)
    assert found.low < found.difference == 0.1 < found.high
    # By hand: 20 of 202, and 1.96 times the root of 41 - 20 * 20 / 202 in 202.
    assert (found.low, found.high) == pytest.approx((0.03839, 0.15963), abs=1e-5)
    same = paired(0, 0, 10)
    assert same.low == -same.high < 0
    draws = np.random.default_rng(0).multinomial(20, [0.03, 0.01, 0.96], size=500)
    intervals = [paired(int(gained), int(lost), 20) for gained, lost, _ in draws]
    assert np.mean([one.low <= 0.02 <= one.high for one in intervals]) > 0.95


@pytest.mark.parametrize(
    ("hits", "samples", "expected"),
    # By hand from Wilson's formula.
    [(9, 10, (0.5958, 0.9821)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))],
)
def test_a_share_has_wilsons_interval(
    hits: int, samples: int, expected: tuple[float, float]
) -> None:
    assert share_interval(hits, samples) == pytest.approx(expected, abs=1e-4)
