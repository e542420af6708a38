"""Which batch norms are folded away, and that the function stays the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from tuning_prefixes import Known, alive, prefix_of, relative

from frostline.schemas import calls
from frostline.tuning import Form, realise
from frostline.tuning.drafts import draft_of
from frostline.tuning.rewriting import fold


def norms_left(prefix: GraphModule) -> int:
    draft = draft_of(prefix)
    fold(draft)
    return sum(calls(node, "batch_norm") for node in draft.graph.nodes)


def error_of_folding(prefix: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return relative(realise(prefix, Form(folded=True))(x)[0], prefix(x)[0])


LAYERS = {
    "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), torch.randn(4, 3, 9)),
    "conv2d": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(4, 3, 9, 9)),
    "conv3d": (nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)), torch.randn(4, 3, 5, 5, 5)),
    "linear": (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), torch.randn(4, 5)),
    "no bias": (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        torch.randn(4, 3, 9, 9),
    ),
    "no affine": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
        torch.randn(4, 3, 9, 9),
    ),
    "grouped, same padding": (
        nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", groups=2), nn.BatchNorm2d(8)),
        torch.randn(4, 4, 9, 9),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_behind_a_layer_is_folded_into_it(name: str) -> None:
    model, x = LAYERS[name]
    prefix = prefix_of(alive(model), x)
    assert norms_left(prefix) == 0
    assert error_of_folding(prefix, x) < 1e-6


def test_all_norms_of_a_resnet_are_folded(resnet: Known) -> None:
    assert norms_left(resnet[1]) == 0


class Shared(nn.Module):
    """One convolution used twice, once with another user beside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(self.conv(y))
        return self.norm(y) + y + z


def test_a_layer_with_another_user_keeps_its_norm() -> None:
    x = torch.randn(2, 3, 4, 4)
    prefix = prefix_of(alive(Shared()), x)
    assert norms_left(prefix) == 1
    assert error_of_folding(prefix, x) < 1e-6


def test_a_norm_over_another_dimension_than_the_outputs_stays() -> None:
    x = torch.randn(4, 6, 5)  # the linear layer's outputs are last, the norm's channels second
    prefix = prefix_of(alive(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))), x)
    assert norms_left(prefix) == 1
    assert error_of_folding(prefix, x) == 0


def test_a_norm_by_statistics_of_the_batch_stays() -> None:
    x = torch.randn(4, 3, 9, 9)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms_left(prefix_of(model, x)) == 1


def test_a_weight_that_is_computed_is_not_folded_into() -> None:
    x = torch.randn(4, 3, 9, 9)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    prefix = prefix_of(alive(nn.Sequential(conv, nn.BatchNorm2d(4))), x)
    assert norms_left(prefix) == 1
    assert error_of_folding(prefix, x) == 0
