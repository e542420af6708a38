"""Blocks of the forward under autocast or without gradients: the line runs through them."""

from __future__ import annotations

import pytest
import torch
from cut_training import both_trainings, differences
from torch import Tensor, nn

import frostline as fl
from frostline.cutting import Cut, cut
from frostline.fingerprints.parts import same_bits


class Autocast(nn.Module):
    """A frozen and a trainable layer in one block; the trainable one is used twice."""

    def __init__(self, *, enabled: bool = True, nested: bool = False) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.above, self.head = nn.Linear(12, 12), nn.Linear(12, 2)
        self.enabled, self.nested = enabled, nested

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            y = self.below(x)
            y = self.above(self.above(y).relu())
            if self.nested:
                with torch.autocast("cpu", enabled=False):
                    y = self.above(y.float())
            out: Tensor = self.head(y)
        return out


def assert_exact(model: nn.Module) -> Cut:
    inputs = torch.randn(6, 6)
    made = cut(model, inputs[:4])
    assert made.error == 0
    plain, through = both_trainings(model, made, inputs, [[0, 5, 3], [4, 1, 2]])
    assert differences(plain, through) == []
    model.eval()
    with torch.no_grad():
        assert same_bits(made.suffix(*made.prefix(inputs[:3])), model(inputs[:3]))
    return made


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_the_line_runs_through_an_autocast_block(enabled: bool, nested: bool) -> None:
    net = Autocast(enabled=enabled, nested=nested)
    fl.freeze(net, "below")
    made = assert_exact(net)
    assert made.why == "behind below.2, since above.weight is trainable"
    [value] = made.frontier.values
    assert value.dtype == (torch.bfloat16 if enabled else torch.float32)


def test_an_autocast_block_shields_the_suffix_as_it_does_the_model() -> None:
    net = Autocast(enabled=False)
    fl.freeze(net, "below")
    inputs = torch.randn(6, 6)
    made = cut(net, inputs)
    net.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(made.suffix(*made.prefix(inputs)), net(inputs))
        assert made.suffix(*made.prefix(inputs)).dtype == torch.float32


def test_the_key_tells_precisions_apart() -> None:
    keys = set()
    for enabled in (True, False):
        torch.manual_seed(0)
        net = Autocast(enabled=enabled)
        fl.freeze(net, "below")
        keys.add(cut(net, torch.randn(4, 6)).key["prefix"])
    assert len(keys) == 2


def test_a_forward_that_autocast_was_wrapped_round_is_cut() -> None:
    # As accelerate's prepare does with mixed_precision="bf16".
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 12), nn.Linear(12, 2))
    fl.train_only(net, "3")
    net.forward = torch.autocast("cpu", dtype=torch.bfloat16)(net.forward)  # type: ignore[method-assign]  # as there
    inputs = torch.randn(6, 6)
    made = cut(net, inputs[:4])
    assert (made.error, made.why) == (0, "behind 2, since 3.weight is trainable")
    assert same_bits(made.suffix(*made.prefix(inputs)), net(inputs))


class Detached(nn.Module):
    """A block without gradients over a frozen part, and over one that is trained elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.above(self.below(x).relu())
        out: Tensor = self.head(y) + self.head(self.above(y))
        return out


def test_the_line_runs_through_a_block_without_gradients() -> None:
    net = Detached()
    fl.freeze(net, "below")
    made = assert_exact(net)
    assert made.why.startswith("behind relu in the forward, since above.weight is trainable")
