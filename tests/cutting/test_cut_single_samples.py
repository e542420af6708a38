"""What the model refuses, its suffix refuses in the same words; above all a batch of one sample."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.cutting import cut


def net(below: nn.Module, *above: nn.Module) -> nn.Module:
    model = nn.Sequential(below, *above)
    fl.freeze(model, "0")
    return model


def dense(norm: nn.Module) -> tuple[nn.Module, Tensor]:
    return net(nn.Linear(4, 8), norm, nn.Linear(8, 2)), torch.randn(3, 4)


def pooled(norm: nn.Module, dims: int) -> tuple[nn.Module, Tensor]:
    """The norm's values are 1 x 1 (x 1)."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    return net(conv(2, 8, 3), pool(1), norm), torch.randn(3, 2, *[4] * dims)


class Asking(nn.Module):
    """A check of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] < 2:
            raise ValueError("pairs are wanted")
        return x


NORMS = {
    "BatchNorm1d": lambda: dense(nn.BatchNorm1d(8)),
    "BatchNorm2d": lambda: pooled(nn.BatchNorm2d(8), 2),
    "BatchNorm3d": lambda: pooled(nn.BatchNorm3d(8), 3),
    "without statistics": lambda: dense(nn.BatchNorm1d(8, track_running_stats=False)),
    "of one's own": lambda: dense(Asking()),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_batch_of_one_is_refused_as_the_model_refuses_it(kind: str) -> None:
    model, inputs = NORMS[kind]()
    made = cut(model, inputs)
    for each in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        whole = each.suffix.model.train()
        with pytest.raises(ValueError) as plain:
            whole(inputs[:1])
        features = each.prefix(inputs[:1])
        before = copy.deepcopy(whole.state_dict())
        with pytest.raises(ValueError) as through:
            each.suffix(*features)
        assert str(through.value) == str(plain.value)
        after = whole.state_dict()
        moved = [n for n in before if not torch.equal(before[n], after[n])]
        # The model counts the batch before it looks at it.
        assert all(name.endswith("num_batches_tracked") for name in moved)
        each.suffix(*each.prefix(inputs))
        if kind != "without statistics":
            whole.eval()
            each.suffix(*features)


def test_one_value_for_each_channel_is_refused_where_the_length_makes_it_so() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.norm = nn.Embedding(9, 64), nn.BatchNorm1d(64)

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.norm(self.below(ids).transpose(1, 2))
            return y

    model = Tokens()
    fl.freeze(model, "below")
    made = cut(model, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    model.train()
    made.suffix(*made.prefix(torch.tensor([[1, 2, 3]])))  # three values for each channel
    one = torch.tensor([[1]])
    with pytest.raises(ValueError, match="more than 1 value per channel") as plain:
        model(one)
    with pytest.raises(ValueError, match="more than 1 value per channel") as through:
        made.suffix(*made.prefix(one))
    assert str(through.value) == str(plain.value)


def test_norms_over_places_and_groups_refuse_single_values_too() -> None:
    class Over(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.below, self.norm = nn.Embedding(9, 64), norm

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.norm(self.below(ids).transpose(1, 2))
            return y

    for norm in (nn.InstanceNorm1d(64, affine=True), nn.GroupNorm(64, 64)):
        model = Over(norm)
        fl.freeze(model, "below")
        made = cut(model, torch.tensor([[1, 2, 3], [4, 5, 6]]))
        model.train()
        one = torch.tensor([[1]])
        with pytest.raises(ValueError, match="Expected more than 1") as plain:
            model(one)
        with pytest.raises(ValueError, match="Expected more than 1") as through:
            made.suffix(*made.prefix(one))
        assert str(through.value) == str(plain.value)
