"""docs/processes.md: what it shows of sharding runs on two processes."""

from __future__ import annotations

import os
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from ranks import on_ranks
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl

PAGE = (Path(__file__).parents[2] / "docs" / "processes.md").read_text(encoding="utf-8")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(x)
        return found


def _shown(folder: Path) -> str:
    os.chdir(folder)
    section = PAGE.partition("\n## Sharding\n")[2].partition("\n## ")[0]
    build, train = re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    names: dict[str, Any] = {"torch": torch, "nn": nn, "fl": fl, "network": Net}
    with redirect_stdout(StringIO()) as said:
        exec(build, names)
        exec(train, names | {"train": data, "val": data})
    return said.getvalue()


def test_what_the_page_shows_of_sharding_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Net()
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    proofs = on_ranks(_shown, tmp_path)
    assert proofs == ["6 frozen tensors (504 B) are bit for bit as they were\n"] * 2
    fl.train_only(plain, "head")
    delta = fl.load_delta(plain, tmp_path / "delta.safetensors")
    assert set(delta.tensors) == {"head.weight", "head.bias"}
    assert (tmp_path / "last" / ".metadata").is_file()
    assert (tmp_path / "features").is_dir()
