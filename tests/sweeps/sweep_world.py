"""A small frozen network with a head, numbers to learn from, and what a sweep of them gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.sweeps import Setting
from frostline.sweeps.heads import put_setting

CLASSES = 3
# Of a member's validation loss in each epoch, against its own single run; as `fl.sweep` states it.
BOUND = 1e-3
_LOOKED_AT = 3  # each costs a run


class Net(nn.Module):
    """A frozen layer, then dropout and a head."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.Tanh())
        self.drop = nn.Dropout(0.2)
        self.head = head or nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.drop(self.body(x)))
        return found


def net(head: nn.Module | None = None) -> Net:
    torch.manual_seed(0)
    model = Net(head)
    fl.freeze(model, "body")
    return model


def rows(count: int, seed: int) -> TensorDataset:
    """Classes that overlap, so that no setting has all right."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=drawn)
    noise = torch.randn(count, CLASSES, generator=drawn)
    return TensorDataset(x, (x[:, :CLASSES] + 0.7 * noise).argmax(dim=1))


TRAIN, VAL = rows(90, 1), rows(60, 2)


def swept(store: Path, model: nn.Module | None = None, **options: Any) -> fl.Sweep:
    asked = {"epochs": 5, "batch_size": 16, "device": "cpu", "features": store, **options}
    return fl.sweep(net() if model is None else model, TRAIN, VAL, **asked)


def single(store: Path, setting: Setting, model: nn.Module | None = None, **options: Any) -> fl.Run:
    """The member's own run."""
    model = net() if model is None else model
    put_setting(model, setting, CLASSES)
    asked = {"epochs": 5, "batch_size": 16, "device": "cpu", "features": store, **options}
    own = {"lr": setting.lr, "weight_decay": setting.weight_decay, "seed": setting.seed}
    return fl.fit(model, TRAIN, VAL, **asked, **own)


def furthest(found: fl.Sweep, store: Path, **options: Any) -> float:
    """The largest relative distance of a validation loss from that of a member's own run.

    Of some members, each of another place among them.
    """
    worst = 0.0
    for member in found.members[:: -(-len(found.members) // _LOOKED_AT)]:
        run = single(store, member.setting, **options)
        assert member.together
        assert len(member.history) == len(run.history)
        assert member.epoch == run.best.epoch
        for own, record in zip(member.history, run.history, strict=True):
            assert own["accuracy"] == record.validation["accuracy"]
            loss = record.validation["loss"]
            worst = max(worst, abs(own["loss"] - loss) / loss)
    return worst
