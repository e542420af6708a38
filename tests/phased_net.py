"""A small network of three parts, its data, and phases that train its head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl

HEAD = fl.Phase(name="head", train="head", epochs=2, lr=0.05)
HEAD_AGAIN = fl.Phase(name="head again", train="head", epochs=1, lr=0.01)


class Net(nn.Module):
    """Batch norm and dropout in each part, so that a wrong mode or random number shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.neck = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.body(x)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def rows(count: int = 26, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(dim=1))
