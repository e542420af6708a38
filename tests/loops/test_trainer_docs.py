"""docs/loops.md: what it shows of transformers' Trainer and of stored features runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import TensorDataset
from trainer_world import PICTURES, TEXTS, arguments, padding, pictures_net, texts_net

import frostline as fl

PAGE = (Path(__file__).parents[2] / "docs" / "loops.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.M)[1:]}


def run(section: str, number: int, names: dict[str, Any]) -> None:
    found = re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], flags=re.DOTALL | re.MULTILINE)
    exec(compile(found[number], "loops.md", "exec"), names)


def test_the_trainer_goes_by_a_plan_as_the_page_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = fl.Plan([fl.Phase(name="head", train="classifier", epochs=1)])
    data = {"train": PICTURES, "held_out": PICTURES, "args": arguments(tmp_path)}
    names = {"plan": plan, "model": pictures_net(), "Trainer": transformers.Trainer, **data}
    run("transformers' Trainer", 0, names)
    assert re.search(r"^head \(1 epoch\): 38 frozen tensors", capsys.readouterr().out, re.M)


def test_features_serve_the_trainer_and_a_loop_as_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = texts_net()
    frozen = fl.train_only(model, "classifier")
    data = {"train": TEXTS, "held_out": TEXTS[:9], "collate": padding, "args": arguments(tmp_path)}
    run(
        "Stored features in any of them",
        0,
        {"fl": fl, "model": model, "Trainer": transformers.Trainer, **data},
    )
    assert frozen.verify().tensors
    small = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))
    fl.freeze(small, "0")
    images = torch.randn(8, 4)
    names: dict[str, Any] = {"fl": fl, "model": small, "images": images}
    names |= {
        "data": TensorDataset(images, torch.arange(8) % 2),
        "criterion": nn.CrossEntropyLoss(),
    }
    run("Stored features in any of them", 1, names)
    assert names["loss"].isfinite()
