"""Folders whose names are no UTF-8 are used as any other, or refused by name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline._files import write_text
from frostline.config import DataSettings, ModelSettings, RunSettings
from frostline.recipe import Recipe
from small_world import call, write_net

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")

NAME = os.fsdecode(b"caf\xe9")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


def test_a_store_lies_in_such_a_folder_and_a_run_is_refused_at_once(
    tmp_path: Path,
) -> None:
    root = tmp_path / NAME
    model = Net()
    fl.freeze(model, "backbone")
    data = TensorDataset(torch.randn(8, 8), torch.arange(8) % 3)
    made = fl.cut(model, data.tensors[0])
    store = fl.FeatureStore(root / "store")
    assert fl.extract(made, data, store, precision="exact").computed == 8
    assert fl.extract(made, data, store, precision="exact").computed == 0
    with pytest.raises(fl.OutputError, match=r"the path .* is no UTF-8.*Choose another `out`"):
        fl.fit(model, data, data, epochs=1, out=root / "run", features="off", device="cpu")
    assert not (root / "run").exists()

    for verb in (["ls"], ["verify"], ["prune", "--max-size", "0"]):
        plain = call("features", *verb, store.root)
        told = call("features", *verb, store.root, "--json")
        assert (plain.status, told.status) == (0, 0), plain.err + told.err
        json.loads(told.out)
    lost = tmp_path / "delta.safetensors"
    fl.save_delta(model, lost)
    with pytest.raises(fl.DeltaError, match=r"the path .* is no UTF-8.*another name"):
        fl.load_delta(model, lost.rename(root / lost.name))
    missing = call("report", root / "run")
    assert (missing.status, missing.err[:6]) == (1, "Error:")


def test_a_model_in_such_a_folder_is_shown(tmp_path: Path) -> None:
    answer = call("inspect", write_net(tmp_path / NAME))
    assert answer.status == 0, answer.err


def test_what_a_text_file_cannot_hold_is_named(tmp_path: Path) -> None:
    settings = RunSettings(
        model=ModelSettings.from_python("Net"),
        data=DataSettings.model_construct(path=f"/photos/{NAME}"),
        training=Recipe(epochs=1),
    )
    told = r"hold a file name that is no UTF-8, in: .*/photos/caf\\udce9.*\. Rename the file"
    with pytest.raises(fl.OutputError, match=told):
        settings.write(tmp_path / "run.toml")
    with pytest.raises(fl.OutputError, match=r"caf\\udce9"):
        write_text(tmp_path / "notes.txt", f"one\n{NAME}\n")
    assert list(tmp_path.iterdir()) == []
