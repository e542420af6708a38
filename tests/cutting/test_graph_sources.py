"""A process that fits again and again does not keep the source text of each graph."""

from __future__ import annotations

import gc
import linecache
from pathlib import Path

import torch
from torch import nn
from torch.fx import graph_module
from torch.utils.data import TensorDataset

import frostline as fl


def kept() -> tuple[int, int]:
    gc.collect()
    texts = [key for key in linecache.cache if key.startswith("<eval_with_key>")]
    return len(texts), len(graph_module._loader.eval_cache)  # type: ignore[attr-defined]


def test_a_fit_leaves_no_text_of_a_graph_behind(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(4 * 4 * 4, 2))
    fl.freeze(model, "0")
    data = TensorDataset(torch.randn(12, 3, 6, 6), torch.arange(12) % 2)
    counts = []
    for lr in (1e-3, 2e-3, 3e-3):
        fl.fit(model, data, data, epochs=1, lr=lr, features=tmp_path, device="cpu")
        counts.append(kept())
    assert counts[0] == counts[1] == counts[2]


def test_a_graph_that_lives_keeps_its_text() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    graph = fl.cut(model, torch.randn(4, 4)).prefix.graph
    name = type(graph).forward.__code__.co_filename
    assert any("linear" in line for line in linecache.getlines(name))
