"""Small networks whose stages are known, with data in which one stage makes the difference."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Squares(nn.Module):
    """Stage 0 hands its input on, stage 1 makes the sign of a product linear, stage 2 drops it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 8)
        self.third = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.first.bias.zero_()
            self.second.weight.zero_()
            self.second.weight[0, :2] = torch.tensor([1.0, 1.0])
            self.second.weight[1, :2] = torch.tensor([-1.0, -1.0])
            self.second.weight[2, :2] = torch.tensor([1.0, -1.0])
            self.second.weight[3, :2] = torch.tensor([-1.0, 1.0])
            self.second.bias.zero_()
            self.third.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)).relu()
        out: Tensor = self.head(self.third(x))
        return out


def products(samples: int, *, seed: int) -> TensorDataset:
    """Four numbers each; the class is the sign of the product of the first two."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 4, generator=draw)
    return TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


class Towers(nn.Module):
    """Two encoders of the same input, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 3)
        self.right = nn.Linear(4, 5)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.left(x), self.right(x)], dim=1))
        return out


class Twice(nn.Module):
    """Its middle layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.last(self.again(self.again(self.first(x)))))
        return out


class Pictures(nn.Module):
    """Convolutions with norms and in-place activations, then a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(10 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.stem(x))))
        out: Tensor = self.head(self.drop(self.body(x).flatten(1)))
        return out


class Tokens(nn.Module):
    """Tokens through layers that keep padding out, by name as models of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.embed(input_ids)
        for layer in self.layers:
            states = layer(states).tanh()
        kept = attention_mask.unsqueeze(2).float()
        out: Tensor = self.head((states * kept).sum(1) / kept.sum(1))
        return out


def bright(samples: int, *, seed: int) -> TensorDataset:
    """Pictures of noise, brighter in one class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    pictures = torch.randn(samples, 3, 8, 8, generator=draw) + 0.4 * labels.view(-1, 1, 1, 1)
    return TensorDataset(pictures, labels)
