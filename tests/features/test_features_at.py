"""Features behind a named submodule are those of the forward that the model has now."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.features import FeatureData

INPUTS = torch.randn(10, 8, generator=torch.Generator().manual_seed(3))
DATA = TensorDataset(INPUTS, torch.arange(10) % 3)


class Net(nn.Module):
    """What its attributes say happens below `backbone`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)
        self.scale = 1.0
        self._scale = 1.0
        self.register_buffer("mean", torch.zeros(()))

    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone((x - self.mean) * self.scale * self._scale))
        return out


def edited() -> type[Net]:
    """The same class after its forward was edited."""

    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.backbone((x - self.mean).abs()))
            return out

    Other.__qualname__ = Net.__qualname__
    Other.__name__ = Net.__name__
    return Other


def extract(model: nn.Module, store: Path) -> FeatureData:
    fl.freeze(model, "backbone")
    made = fl.cut(model, INPUTS, at="backbone")
    found = fl.extract(made, DATA, fl.FeatureStore(store), precision="exact")
    assert torch.equal(found.rows.gather(torch.arange(10))[0], made.prefix(INPUTS)[0])
    return found


def with_tanh() -> nn.Module:
    model = Net()
    model.backbone[1] = nn.Tanh()
    return model


def with_mean() -> nn.Module:
    model = Net()
    model.mean += 5
    return model


def with_scale() -> nn.Module:
    model = Net()
    model.scale = 2.0
    return model


def with_private_scale() -> nn.Module:
    model = Net()
    model._scale = 2.0
    return model


def doubled(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return output * 2


def centred(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0] - 1


class Scaled:
    """A hook that holds a number."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, _: nn.Module, __: object, output: Tensor) -> Tensor:
        return output * self.scale


def with_hook(hook: Callable[..., Tensor], path: str = "backbone") -> nn.Module:
    model = Net()
    model.get_submodule(path).register_forward_hook(hook)
    return model


def with_hook_before() -> nn.Module:
    model = Net()
    model.backbone[0].register_forward_pre_hook(centred)
    return model


@pytest.mark.parametrize(
    "make",
    [
        with_tanh,
        with_mean,
        with_scale,
        with_private_scale,
        lambda: edited()(),
        lambda: with_hook(doubled),
        lambda: with_hook(doubled, "backbone.1"),
        lambda: with_hook(Scaled(2.0)),
        with_hook_before,
    ],
    ids=[
        "module",
        "buffer of the root",
        "attribute",
        "private attribute",
        "code",
        "hook of the part",
        "hook below",
        "hook that is an object",
        "hook before",
    ],
)
def test_another_forward_below_the_line_is_computed_anew(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    assert extract(Net(), tmp_path).computed == 10
    assert extract(Net(), tmp_path).computed == 0
    assert extract(make(), tmp_path).computed == 10
    assert extract(make(), tmp_path).computed == 0


def test_hooks_that_hold_other_numbers_are_other_hooks(tmp_path: Path) -> None:
    def scaled(by: float) -> Callable[..., Tensor]:
        return lambda _, __, output: output * by

    def scaled_by(by: dict[str, float], _: object, __: object, output: Tensor) -> Tensor:
        return output * by["scale"]

    for make in (Scaled, scaled, lambda by: partial(scaled_by, {"scale": by})):
        computed = [extract(with_hook(make(by)), tmp_path).computed for by in (2.0, 3.0, 3.0)]
        assert computed == [10, 10, 0]


def test_a_hook_of_the_named_part_changes_its_answer_once() -> None:
    model = with_hook(doubled)
    fl.freeze(model, "backbone")
    made = fl.cut(model, INPUTS, at="backbone")
    assert torch.equal(made.suffix(*made.prefix(INPUTS)), model(INPUTS))


def test_a_forward_that_goes_on_above_the_line_draws_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("frostline.cutting.at_module.can_be_cut_short", lambda _: False)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 3))
    fl.train_only(model, "2")
    made = fl.cut(model, INPUTS, at="0")  # which compares what is drawn
    before = torch.get_rng_state()
    made.prefix(INPUTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trained_head_costs_nothing(tmp_path: Path) -> None:
    extract(Net(), tmp_path)
    model = Net()
    with torch.no_grad():
        model.head.weight += 1
    assert extract(model, tmp_path).computed == 0
