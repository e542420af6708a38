"""docs/loops.md: what it shows of loops of one's own, scikit-learn, skorch and hooks runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

import frostline as fl
from phased_net import net, rows

PAGE = (Path(__file__).parents[2] / "docs" / "loops.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.M)[1:]}
OURS = ["A loop of your own", "Accelerate", "scikit-learn", "skorch", "Hooks"]


@pytest.fixture
def _accelerate_as_new() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def blocks(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], flags=re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("_accelerate_as_new")
@pytest.mark.parametrize("section", OURS)
def test_what_a_section_shows_runs(
    section: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(section)
    train = rows()
    names: dict[str, Any] = {"torch": torch, "nn": nn, "fl": fl, "model": net(), "train": train}
    names |= {"val": rows(12, seed=2), "inputs": train.tensors[0], "labels": train.tensors[1]}
    if section == "Accelerate":
        head, all_of_it = fl.Phase(train="head", epochs=1), fl.Phase(train="all", epochs=1)
        names["plan"] = fl.Plan([head, all_of_it])
    exec(compile(code, "loops.md", "exec"), names)
    said = capsys.readouterr().out
    expected = "are bit for bit as they were" if section != "Hooks" else "stopped: good enough"
    assert expected in said
    if section == "scikit-learn":
        assert fl.open_run("runs/best").folder.result.is_file()


def test_every_hook_is_in_the_table() -> None:
    methods = [name for name in vars(fl.Hook) if name.startswith("on_")]
    assert all(f"| `{name}(" in SECTIONS["Hooks"] for name in methods)
