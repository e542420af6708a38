"""The key under which features are stored stays what it is from one version of ours to the next.

Whoever changes one of these texts makes every stored feature computed anew.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from frostline.cutting import cut

# What a graph calls its operations, and the code of torch's classes, are those of a version.
TORCH = torch.__version__.partition("+")[0]
of_this_torch = pytest.mark.skipif(TORCH != "2.15.0", reason="pinned for torch 2.15.0")
of_this_python = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="pinned for Python 3.11"
)


class Net(nn.Module):
    """A backbone that is written into, normed, cast and dropped out, all in evaluation."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(6, 8)
        self.register_buffer("scale", torch.ones(8))
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.conv(x)).relu_(), 0.5, self.conv.training)
        with torch.autocast("cpu", torch.bfloat16):
            x = self.linear(x)
        x = x.float() * self.scale
        x += torch.arange(8.0)
        out: Tensor = self.head(x.flatten(1))
        return out


def fixed_net() -> Net:
    net = Net()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.copy_(torch.arange(1, tensor.numel() + 1).reshape(tensor.shape) / 16)
    fl.train_only(net, "head")
    return net


def test_the_tensors_of_a_key_are_what_they_were() -> None:
    key = cut(fixed_net(), torch.ones(3, 2, 6)).key
    assert str(key["tensors"]) == "xxh3:17e3a2b413ac0eebf13d8c6a5d43283b"


@of_this_torch
def test_the_graph_of_a_key_is_what_it_was() -> None:
    assert cut(fixed_net(), torch.ones(3, 2, 6)).key["prefix"] == "3335212c14063d8668b63707985a3828"


def test_the_tensors_of_a_named_cut_are_what_they_were() -> None:
    key = cut(fixed_net(), torch.ones(3, 2, 6), at="norm").key
    assert str(key["tensors"]) == "xxh3:c6b53bc115cf745ec52d1c18e3c85cef"


@of_this_torch
@of_this_python
def test_the_modules_of_a_named_cut_are_what_they_were() -> None:
    key = cut(fixed_net(), torch.ones(3, 2, 6), at="norm").key
    assert key["prefix"] == "Net up to norm, modules 7e3d7a1a7ed49aff0027aa78b965c70b"
