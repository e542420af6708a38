"""Samples that do not lie in dimension 0: a feature's row is one sample all the same."""

from __future__ import annotations

import pytest
import torch
from cut_training import both_trainings, differences, rows
from torch import Tensor, nn

import frostline as fl
from frostline.cutting import Cut, cut
from frostline.fingerprints.parts import same_bits


def assert_exact(model: nn.Module, inputs: Tensor) -> Cut:
    """Equal bits in training and in evaluation; each row of a feature is its own sample's."""
    made = cut(model, inputs[:4])
    assert made.error == 0
    plain, through = both_trainings(model, made, inputs, [[0, 5, 3], [4, 1, 2]])
    assert differences(plain, through) == []
    whole = made.prefix(inputs)
    assert all(len(feature) == len(inputs) for feature in whole)
    for feature, value in zip(made.prefix(rows(inputs, [5, 2])), whole, strict=True):
        torch.testing.assert_close(feature, value[[5, 2]])
    model.eval()
    for places in ([4], [1, 0, 3]):
        gathered = [value[places].contiguous() for value in made.prefix(inputs)]
        torch.testing.assert_close(made.suffix(*gathered), model(inputs[places]))
    return made


class SequenceFirst(nn.Module):
    """Frozen layers over `(length, batch, width)`, and a trainable one of the same kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.below = nn.Sequential(nn.Linear(8, 200), nn.ReLU(), nn.Linear(200, 8))
        self.above = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.below(self.embed(ids.T))
        out: Tensor = self.above(y).square().mean(0)
        return out


def test_a_sequence_first_value_is_kept_by_sample() -> None:
    net = SequenceFirst()
    fl.freeze(net, "embed | below")
    ids = torch.randint(0, 20, (6, 5))
    made = assert_exact(net, ids)
    [value] = made.frontier.values
    assert value.shape == (None, 8)
    assert value.nbytes == 5 * 8 * 4
    assert made.prefix(ids)[0].shape == (6, 5, 8)


class Folded(nn.Module):
    """Frozen frames, `(batch * time, ...)` or `(time * batch, ...)`, and trainable ones."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.below = nn.Conv2d(3, 2, 3, stride=2)
        self.above = nn.Conv2d(2, 4, 3)

    def forward(self, clips: Tensor) -> Tensor:
        if self.order == "time first":
            clips = clips.transpose(0, 1)
        one, two = clips.shape[:2]
        frames = clips.reshape(one * two, *clips.shape[2:])
        y = self.below(frames).relu()
        y = self.above(y).mean((2, 3)).view(y.shape[0] // (one * two) * one, two, -1)
        return y.square().mean(0 if self.order == "time first" else 1)


@pytest.mark.parametrize("order", ["batch first", "time first"])
def test_time_folded_into_the_batch_is_unfolded_for_the_store(order: str) -> None:
    net = Folded(order)
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 2, 3, 9, 9))
    [value] = made.frontier.values
    assert value.shape == (2, 2, 4, 4)


class Mixed(nn.Module):
    """Sequence first, and each sample is set off against its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x).transpose(0, 1)
        y = y - y.mean(1, keepdim=True)
        out: Tensor = self.above(y.tanh()).mean(0)
        return out


def test_what_mixes_samples_in_another_dimension_is_not_kept() -> None:
    net = Mixed()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 3, 6))
    assert "depends on its batch or on chance" in made.why


class Doubled(nn.Module):
    """Two views of each sample, one batch after the other, as in contrastive learning."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.above(self.below(torch.cat([x, x.flip(1)])))
        one, two = y.chunk(2)
        return one * two


def test_two_views_in_one_batch_are_kept_by_sample() -> None:
    net = Doubled()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 6))
    assert made.frontier.values[0].shape == (2, 4)


def test_memory_that_is_written_into_is_restored_by_its_layout() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.shift = nn.Linear(6, 8), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.below(x.transpose(0, 1)) * 1.0
            y[0].add_(self.shift)
            return y.add_(self.shift).tanh().sum(0)

    net = Net()
    fl.freeze(net, "below")
    inputs = torch.randn(6, 3, 6)
    made = assert_exact(net, inputs)
    features = made.prefix(inputs)
    kept = [feature.clone() for feature in features]
    made.suffix(*features)
    assert all(map(same_bits, kept, features))
