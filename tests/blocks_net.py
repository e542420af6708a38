"""A small network with all that freezing touches, and a look at its whole state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two blocks with batch norm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(self.block(), self.block())
        self.head = nn.Linear(4, 2)

    @staticmethod
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def batch() -> Tensor:
    return torch.randn(8, 4) + 1


def modes(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules()}


def wanting(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that freezing may touch."""
    return {
        "modes": modes(model),
        "wanting": wanting(model),
        "grads": {name: parameter.grad for name, parameter in model.named_parameters()},
        "own": {path: sorted(module.__dict__) for path, module in model.named_modules()},
    }


def with_mixed_modes(net: Net) -> Net:
    net.train()
    net.body[0].eval()
    net.body[1][2].training = False
    return net
