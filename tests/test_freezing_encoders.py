"""Freezing leaves `nn.TransformerEncoder` on a way through a padded batch that works."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import CutError
from frostline.estimates.steps import Setup

# PyTorch's own, at the first nested tensor of a process.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

PADDED = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


class Net(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padded).mean(1))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def reloaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, reloaded])
def test_frozen_bottom_layers_train_the_others_on_a_padded_batch(copied: object, x: Tensor) -> None:
    model = Net().train()
    expected = model(x, PADDED)
    fl.freeze(model, "encoder.layers.0")
    model = copied(model).train()  # type: ignore[operator]
    output = model(x, PADDED)
    output.sum().backward()
    assert torch.allclose(output, expected, atol=1e-6)
    assert model.encoder.layers[1].linear1.weight.grad is not None
    assert model.encoder.layers[0].linear1.weight.grad is None


@pytest.mark.parametrize("selector", ["encoder.layers.0", "encoder"])
def test_a_frozen_encoder_evaluates_to_the_same_bits(selector: str, x: Tensor) -> None:
    model = Net().eval()
    with torch.no_grad():
        expected = model(x, PADDED)
        fl.freeze(model, selector)
        assert torch.equal(model.train().eval()(x, PADDED), expected)


def test_a_wholly_frozen_encoder_gives_in_training_what_it_gives_in_evaluation(x: Tensor) -> None:
    model = Net().eval()
    with torch.no_grad():
        expected = model(x, PADDED)
    fl.freeze(model, "encoder")
    assert torch.equal(model.train()(x, PADDED), expected)


def test_a_thawed_encoder_packs_as_before_the_freeze() -> None:
    model = Net()
    fl.freeze(model, "encoder.layers.0").thaw()
    assert model.encoder.use_nested_tensor is True
    model.encoder.use_nested_tensor = False
    fl.freeze(model, "encoder").thaw()
    assert model.encoder.use_nested_tensor is False


def test_doctor_and_estimate_take_a_frozen_encoder_for_a_working_model(x: Tensor) -> None:
    model = Net(layers=1)
    fl.freeze(model, "encoder")
    assert [f.code for f in fl.doctor(model, (x, PADDED)).findings if f.level == "error"] == []
    trace = Setup(model, (x, PADDED), batch_size=3).trace()
    assert trace.ops


def test_a_cut_of_an_encoder_that_packs_says_how_to_cut_it(x: Tensor) -> None:
    model = Net(layers=1)
    fl.freeze(model, "encoder")
    with pytest.raises(CutError, match="Set use_nested_tensor = False on encoder, which"):
        fl.cut(model, (x, PADDED))
    model.encoder.use_nested_tensor = False
    cut = fl.cut(model, (x, PADDED))
    assert torch.allclose(cut.suffix(*cut.prefix(x, PADDED)), model(x, PADDED), atol=1e-6)
