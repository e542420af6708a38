"""docs/plans.md: every block is what it says, runs, and fits the network it names."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import frostline as fl
from frostline.models import load_model
from frostline.plans import Phase, Until
from small_world import call, write_pictures

PAGE = (Path(__file__).parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
PLANS = [line for line in COMMANDS if line.startswith("frostline plan ")]
TRAINS = [line for line in COMMANDS if line.startswith("frostline train ")]
BY_HAND = [code for code in blocks("python") if "fl.fit(" not in code]
FITTED = [code for code in blocks("python") if "fl.fit(" in code]


@cache
def network(name: str) -> nn.Module:
    return load_model(name, weights="none", classes=2).model


def test_every_block_is_checked_here() -> None:
    assert set(re.findall(r"^```(\w+)$", PAGE, flags=re.MULTILINE)) == {
        "sh",
        "text",
        "toml",
        "python",
    }
    assert len(PLANS) + len(TRAINS) == len([line for line in COMMANDS if line.strip()])
    assert len(PLANS) >= 4
    assert len(TRAINS) == len(FITTED) == len(BY_HAND) == len(blocks("text")) == 1


def test_every_kind_is_shown() -> None:
    shown = {re.findall(r"--kind (\w+)", toml)[0] for toml in blocks("toml")}
    assert shown == {"head_only", "gradual", "lp_ft", "surgical", "full", "norm_and_bias"}


@pytest.mark.parametrize("toml", blocks("toml"), ids=lambda toml: toml.partition("\n")[0])
def test_a_plan_in_the_docs_is_what_the_command_above_it_writes(toml: str) -> None:
    heading, _, body = toml.partition("\n")
    words = shlex.split(heading.removeprefix("# "))
    answer = call(*words[1:])
    assert answer.status == 0
    assert answer.out == body
    assert fl.Plan.loads(toml).check(network(words[2])) == ()


@pytest.mark.parametrize("line", PLANS)
def test_a_plan_command_in_the_docs_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    assert call(*words[1:]).status == 0
    if "--out" in words:
        assert len(fl.Plan.load(words[words.index("--out") + 1])) >= 1


def test_the_table_in_the_docs_is_the_one_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = call(*shlex.split(PLANS[0])[1:]).out
    table, _, after = printed.partition("\n\n")
    assert [line.rstrip() for line in table.splitlines()] == blocks("text")[0].splitlines()
    assert "next: frostline train DATA --model resnet18 --plan plan.toml" in after


def test_every_field_stands_in_the_tables() -> None:
    cells = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    in_words = {"monitor", "min_change"}
    assert named == {*Phase.model_fields, *Until.model_fields} - in_words
    assert all(f"`{name}`" in PAGE for name in in_words)


def python_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the block that comes first leaves behind, run as a reader would."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "plans"}
    exec(compile(BY_HAND[0], "plans.md", "exec"), names)
    return names


def test_the_python_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = python_names(tmp_path, monkeypatch)
    assert names["plan"].check(names["model"]) == ()
    assert fl.Plan.load("plan.toml") == names["plan"]


def test_a_fit_with_a_plan_in_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = python_names(tmp_path, monkeypatch)
    exec(compile(FITTED[0], "plans.md", "exec"), names)
    assert (tmp_path / "runs" / "surgical").is_dir()


def test_training_by_the_plan_in_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On small pictures, with one epoch a phase and no weights, or it would take minutes."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "photos", train=4, val=2)
    plan = fl.Plan.lp_ft(network("resnet18"), probe_epochs=1, tune_epochs=1)
    plan.save("plan.toml")
    answer = call(*shlex.split(TRAINS[0])[1:], "--weights", "none", "--features", "off")
    assert answer.status == 0, answer.err
    assert (tmp_path / "runs" / "lp-ft").is_dir()
