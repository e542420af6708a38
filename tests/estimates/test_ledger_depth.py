"""The ledger of a network: all that is kept, and work and room in proportion to its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.estimates import ledger as ledgers
from frostline.pages.inspection import inspect_page


class Deep(nn.Module):
    """Residual blocks, all alike."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(depth)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def sizes(depth: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many operations ran, how much was noted of them, and how long the page is."""
    seen: list[Any] = []
    follow = ledgers._follow

    def watched(*given: Any) -> Any:
        seen.append(follow(*given))
        return seen[-1]

    model = Deep(depth)
    with monkeypatch.context() as patch:
        patch.setattr(ledgers, "_follow", watched)
        found = ledgers.ledger(
            model, torch.zeros(2, 4, 2, 2), batch_size=2, calibration_seconds=0.0
        )
    page = inspect_page(
        model, found, name="deep", options=[], samples=9, mode="train", selector="head"
    )
    return {
        "operations": sum(len(turns.ops) for turns in seen),
        "calls": sum(len({id(op.call) for op in turns.ops}) for turns in seen),
        "turns": len(found.turns),
        "reads": sum(len(turn["reads"]) for turn in found.turns),
        "saved": sum(len(keys) for turn in found.turns for keys in turn["saved"].values()),
        "storages": len(found.storages),
        "page": len(page),
    }


def test_each_layer_more_adds_as_much_as_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    small, middle, large = (sizes(depth, monkeypatch) for depth in (4, 8, 16))
    for name in ("operations", "turns", "reads", "saved", "storages"):
        assert large[name] - middle[name] == 2 * (middle[name] - small[name]) > 0
    assert small["calls"] == middle["calls"] == large["calls"]  # alike ones are one object
    # Numbers in the page have more digits where there are more of them.
    assert large["page"] - middle["page"] < 2.2 * (middle["page"] - small["page"])


class Scaled(nn.Module):
    """Keeps a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = torch.rand(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.above(self.below(x) * self.scale)
        return out


def test_a_constant_of_the_models_own_is_kept_as_by_an_estimate() -> None:
    model, x = Scaled(), torch.randn(2, 4)
    found = ledgers.ledger(model, x, batch_size=5, calibration_seconds=0)
    kept = {place for turn in found.turns for place in turn["saved"].get("7", ())}
    step = fl.estimate(model, x, batch_size=5, calibration_seconds=0).step
    assert sum(found.storages[place]["nbytes"] for place in kept) == step.memory.saved
