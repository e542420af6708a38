"""Frozen state that is neither parameter nor buffer: proved, or named where no proof can see it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.deltas import load_delta, save_delta


class Part(nn.Module):
    """A layer that computes with more than its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = torch.ones(4)
        self.lists = {"scales": [torch.full((4,), 2.0)]}
        self.function = shifting(torch.full((4,), 3.0))
        self.aside: Tensor | None = torch.zeros(2, 4)
        self.cache = Cache()
        self.state = torch.full((4,), 5.0)
        self.dtype_told: Any = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        self.aside = self.linear(x) * self.table * self.lists["scales"][0] + self.state
        out: Tensor = self.function(self.aside)
        return out

    def get_extra_state(self) -> Any:
        return {"state": self.state, "dtype": self.dtype_told}

    def set_extra_state(self, state: Any) -> None:
        self.state = state["state"]


class Cache:
    def __init__(self) -> None:
        self.rows = torch.zeros(3)


def shifting(shift: Tensor) -> Any:
    return lambda x: x + shift


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(Part(), nn.Linear(4, 2))


@pytest.fixture
def model() -> Any:
    return net()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda part: part.table.add_(0.5), r"0\.table: moved by up to 0\.5"),
        (lambda part: part.lists["scales"][0].add_(0.5), r"0\.lists\['scales'\]\[0\]: moved by"),
        (lambda part: part.function.__closure__[0].cell_contents.add_(1), r"0\.function\(shift\):"),
        (lambda part: part.state.add_(0.5), r"0\._extra_state\['state'\]: moved by up to 0\.5"),
        (lambda part: setattr(part, "state", torch.zeros(4)), r"0\._extra_state\['state'\]: moved"),
        (lambda part: setattr(part, "dtype_told", None), r"0\._extra_state\['dtype'\]: shape"),
    ],
)
def test_what_a_part_computes_with_is_proved_wherever_it_lies(
    model: Any, change: Any, name: str
) -> None:
    frozen = fl.freeze(model, "0")
    frozen.verify()
    change(model[0])
    with pytest.raises(fl.DriftError, match=name):
        frozen.verify()


def test_what_a_forward_puts_aside_is_no_drift_and_named(model: Any) -> None:
    frozen = fl.freeze(model, "0")
    assert "0.aside" not in str(frozen.verify())
    model.train()(torch.randn(2, 4))
    assert "0.aside (replaced since)" in frozen.verify().not_covered


def test_what_no_proof_can_see_is_named_at_the_freeze_and_in_the_proof(model: Any) -> None:
    frozen = fl.freeze(model, "0")
    assert frozen.not_covered == ("0.cache (Cache)",)
    assert str(frozen).endswith("\nnot covered: 0.cache (Cache)")
    assert str(frozen.verify()).endswith("as they were; not covered: 0.cache (Cache)")


def test_state_that_cannot_be_asked_for_is_named() -> None:
    class Broken(nn.Linear):
        def get_extra_state(self) -> Any:
            raise OSError("no such device")

    frozen = fl.freeze(nn.Sequential(Broken(2, 2), nn.Linear(2, 2)), "0")
    assert frozen.verify().not_covered == ("0.its saved state (OSError)",)


def test_a_thawed_part_is_no_longer_owed(model: Any) -> None:
    frozen = fl.freeze(model, "0")
    fl.thaw(model, "0.linear.weight")
    model[0].table.zero_()
    assert frozen.verify().not_covered == ()


def test_a_copied_handle_watches_the_copy(model: Any) -> None:
    frozen = fl.freeze(model, "0")
    twin = copy.deepcopy(frozen)
    model[0].table.zero_()
    twin.verify()
    twin.model[0].table.zero_()
    with pytest.raises(fl.DriftError, match=r"0\.table: moved by up to 1"):
        twin.verify()


def test_the_proof_and_the_model_have_one_fingerprint(model: Any) -> None:
    frozen = fl.freeze(model, "0")
    assert frozen.fingerprint == frozen.verify().fingerprint == fl.fingerprint(model, "0")
    assert "0._extra_state['state']" in frozen.fingerprint.tensors


def test_plain_attributes_are_in_no_fingerprint(model: Any) -> None:
    before = fl.fingerprint(model)
    model(torch.randn(2, 4))
    assert fl.fingerprint(model) == before


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_torch_makes_anew_from_parameters_is_left_out(wrap: Any) -> None:
    layer = nn.Sequential(nn.LSTM(4, 4), wrap(nn.Linear(4, 4)))
    frozen = fl.freeze(nn.Sequential(layer, nn.Linear(4, 2)), "0")
    listed = [*layer.named_parameters(), *layer.named_buffers()]
    assert frozen.verify().tensors == len(listed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_weights_of_quantised_layers_are_proved() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    quantised = torch.ao.quantization.quantize_dynamic(body, {nn.Linear})
    model: Any = nn.Sequential(quantised, nn.Linear(4, 2))
    frozen = fl.freeze(model, "0")
    assert "0.0._packed_params._packed_params[0]" in frozen.verify().fingerprint.tensors
    packed = model[0][0]._packed_params
    packed.set_weight_bias(torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.qint8), None)
    with pytest.raises(fl.DriftError, match=r"0\.0\._packed_params\._packed_params\[0\]: moved"):
        frozen.verify()


def test_a_delta_belongs_to_the_state_that_modules_save(tmp_path: Path) -> None:
    model = net()
    fl.freeze(model, "0")
    file = tmp_path / "delta.safetensors"
    save_delta(model, file)
    load_delta(net(), file)
    other = net()
    other[0].state.zero_()
    with pytest.raises(fl.DeltaError, match=r"another base: .* first 0\._extra_state\['state'\]"):
        load_delta(other, file)
