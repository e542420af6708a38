"""The floor that benchmarks/memory.py compares with, by hand on small networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Floor = Callable[..., int]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def floor_of(benchmark: Callable[[str], ModuleType]) -> Floor:
    """Bytes of the floor of a model on an input, the loss's own left out."""
    subject = benchmark("memory_models").Subject
    floor_bytes = benchmark("memory_floor").floor_bytes

    def measure(model: nn.Module, inputs: Tensor) -> int:
        logits = model(inputs).nbytes
        one = subject(model, inputs, torch.zeros(len(inputs), dtype=torch.long))
        return int(floor_bytes(one)) - logits

    return measure


def chain() -> nn.Sequential:
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.Flatten())


MAP = 2 * 8 * 6 * 6  # numbers between the convolutions


def test_full_training_keeps_each_tensor_once(floor_of: Floor) -> None:
    statistics = 2 * 8 * 4
    assert floor_of(chain(), torch.randn(2, 3, 6, 6)) == 2 * MAP * 4 + statistics


def test_a_trained_stem_needs_one_bit_of_each_relu_above_it(floor_of: Floor) -> None:
    model = chain()
    fl.train_only(model, "0")
    assert floor_of(model, torch.randn(2, 3, 6, 6)) == MAP / 8


def test_the_gradient_of_the_input_needs_no_more_than_that_of_the_stem(floor_of: Floor) -> None:
    model = chain()
    fl.freeze(model, "all", leaving="nothing")
    assert floor_of(model, torch.randn(2, 3, 6, 6, requires_grad=True)) == MAP / 8


def test_trained_head_needs_its_input_alone(floor_of: Floor) -> None:
    model = chain()
    fl.train_only(model, "3")
    assert floor_of(model, torch.randn(2, 3, 6, 6)) == MAP * 4


def test_a_pooled_maximum_needs_its_place_in_the_window(floor_of: Floor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(3, padding=1), nn.Flatten())
    assert floor_of(model, torch.randn(2, 3, 6, 6)) == 2 * 8 * 2 * 2 * 4 / 8


def test_gelu_needs_its_input_or_a_bit_where_its_output_is_kept(floor_of: Floor) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    inputs = torch.randn(2, 8)
    assert floor_of(model, inputs) == 2 * 16 * 4 + 2 * 16 / 8
    fl.freeze(model, "2")
    assert floor_of(model, inputs) == 2 * 16 * 4


@pytest.mark.parametrize("what", ["full", "head", "stem", "norms", "second", "input"])
@pytest.mark.parametrize("name", ["resnet18", "bert", "lstm"])
def test_the_floor_is_below_what_pytorch_keeps(
    benchmark: Callable[[str], ModuleType], name: str, what: str
) -> None:
    if name == "bert":
        pytest.importorskip("transformers")
    models = benchmark("memory_models")
    with mock.patch.object(models, "TOKENS", 32):
        one = models.subject(name, what, batch=2, pixels=64)
    saved = benchmark("memory")._saved_bytes(one, one.model)
    assert benchmark("memory_floor").floor_bytes(one) <= saved


def test_an_operation_without_a_rule_is_named(floor_of: Floor) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, value: Tensor) -> Tensor:
            return torch.cumsum(self.inner(value), 1)

    with pytest.raises(NotImplementedError, match="no rule for aten::cumsum"):
        floor_of(Odd(), torch.randn(2, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("what", ["full", "stem", "norms", "input"])
@pytest.mark.parametrize("name", ["resnet18", "vit_small", "unet", "bert"])
def test_on_cuda_gradients_are_those_of_pytorch_and_no_more_memory_is_allocated(
    benchmark: Callable[[str], ModuleType], name: str, what: str
) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    memory = benchmark("memory")
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        found = memory._bytes_and_times(name, what, "cuda", ["lean"], 0.0)
        for side in ("plain", "lean"):
            found |= memory._peak(name, what, "cuda", side)
    assert found["lean_gradients"] <= 1e-6
    assert found["lean_bytes"] <= found["plain_bytes"]
    # What is computed again passes through memory for a moment.
    assert 0 < found["lean_peak_bytes"] <= 1.02 * found["plain_peak_bytes"]
