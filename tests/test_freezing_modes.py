"""The frozen part computes the same function in training as in evaluation, layer by layer.

Each kind of layer that behaves otherwise in training is frozen and then taken through each of
the ways in which users, trainers and torch itself put models in train mode, copy or wrap them.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
import torchvision.ops
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

import frostline as fl
from fast_path import without_fast_path
from frostline.freezing import held_layers
from frostline.freezing.modes import modes_kept


class Net(nn.Module):
    """A part to freeze and a head to train."""

    def __init__(self, part: nn.Module, features: int) -> None:
        super().__init__()
        self.part = part
        self.head = nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.part(x).flatten(1))
        return out


class FirstOutput(nn.Module):
    """A recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return out


class FunctionalDropout(nn.Module):
    """Dropout without a dropout module, as densenet and many others have it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, training=self.training)


def hook_style_spectral_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # superseded, and still in many models
        return nn.utils.spectral_norm(layer)


def after(first: nn.Module, *others: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(copy.deepcopy(first), *map(copy.deepcopy, others))


@dataclass(frozen=True)
class Case:
    """A part, the shape of its input, and how many numbers it gives per sample."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (8, 6)
    features: int = 6


FLAT, SERIES = nn.Linear(6, 6), nn.Conv1d(3, 3, 1)
IMAGE, VOLUME = nn.Conv2d(3, 3, 1), nn.Conv3d(3, 3, 1)
SERIES_OF = {"shape": (8, 3, 4), "features": 12}
IMAGE_OF: dict[str, Any] = {"shape": (8, 3, 2, 2), "features": 12}
VOLUME_OF: dict[str, Any] = {"shape": (8, 3, 2, 2, 2), "features": 24}
SEQUENCE_OF: dict[str, Any] = {"shape": (8, 5, 6), "features": 30}

CASES = {
    "BatchNorm1d": Case(after(FLAT, nn.BatchNorm1d(6))),
    "BatchNorm2d": Case(after(IMAGE, nn.BatchNorm2d(3)), **IMAGE_OF),
    "BatchNorm3d": Case(after(VOLUME, nn.BatchNorm3d(3)), **VOLUME_OF),
    "BatchNorm without momentum": Case(after(FLAT, nn.BatchNorm1d(6, momentum=None))),
    "BatchNorm without affine": Case(after(FLAT, nn.BatchNorm1d(6, affine=False))),
    "SyncBatchNorm": Case(after(IMAGE, nn.SyncBatchNorm(3)), **IMAGE_OF),
    "InstanceNorm2d": Case(
        after(IMAGE, nn.InstanceNorm2d(3, affine=True, track_running_stats=True)), **IMAGE_OF
    ),
    "InstanceNorm2d without affine": Case(
        after(IMAGE, nn.InstanceNorm2d(3, track_running_stats=True)), **IMAGE_OF
    ),
    "Dropout": Case(after(FLAT, nn.Dropout(0.5))),
    "Dropout1d": Case(after(SERIES, nn.Dropout1d(0.5)), (8, 3, 4), 12),
    "Dropout2d": Case(after(IMAGE, nn.Dropout2d(0.5)), **IMAGE_OF),
    "Dropout3d": Case(after(VOLUME, nn.Dropout3d(0.5)), **VOLUME_OF),
    "AlphaDropout": Case(after(FLAT, nn.AlphaDropout(0.5))),
    "FeatureAlphaDropout": Case(after(IMAGE, nn.FeatureAlphaDropout(0.5)), **IMAGE_OF),
    "functional dropout": Case(FunctionalDropout),
    "RReLU": Case(after(FLAT, nn.RReLU())),
    "StochasticDepth": Case(after(FLAT, torchvision.ops.StochasticDepth(0.5, "row"))),
    "DropPath": Case(after(FLAT, timm.layers.DropPath(0.5))),
    "MultiheadAttention": Case(SelfAttention, **SEQUENCE_OF),
    "LSTM": Case(
        lambda: FirstOutput(nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True)), **SEQUENCE_OF
    ),
    "GRU": Case(lambda: FirstOutput(nn.GRU(6, 6, 2, dropout=0.5, batch_first=True)), **SEQUENCE_OF),
    "spectral_norm hook": Case(lambda: hook_style_spectral_norm(nn.Linear(6, 6))),
    "spectral_norm": Case(lambda: parametrizations.spectral_norm(nn.Linear(6, 6))),
    "nested": Case(after(nn.Sequential(FLAT, nn.BatchNorm1d(6), nn.Dropout()), FLAT, nn.Dropout())),
}


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def whole_in_train_mode(model: nn.Module) -> nn.Module:
    return model.train()


def each_module_in_train_mode(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.train()
    return model


def through_eval_and_back(model: nn.Module) -> nn.Module:
    return model.eval().train()


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).train()


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded.train()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager").train()  # type: ignore[return-value]


WAYS = (
    as_it_is,
    whole_in_train_mode,
    each_module_in_train_mode,
    through_eval_and_back,
    copied,
    saved_and_loaded,
    compiled,
)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def net(case: Case) -> nn.Module:
    return Net(case.make(), case.features)


@pytest.fixture
def batch(case: Case) -> Tensor:
    torch.manual_seed(0)  # whatever ran before
    return torch.randn(case.shape) + 3


def buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def assert_constant(model: nn.Module, batch: Tensor) -> Tensor:
    """Two passes give the same bits and move no buffer."""
    before = buffers(model)
    one: Tensor = model(batch)
    two = model(batch)
    assert torch.equal(one, two)
    assert all(map(torch.equal, before, buffers(model)))
    return one


def test_the_layer_does_behave_otherwise_in_training(net: nn.Module, batch: Tensor) -> None:
    """A control: what the other tests show would be no feat otherwise."""
    before = buffers(net)
    moved = not torch.equal(net(batch), net(batch))
    assert moved or not all(map(torch.equal, before, buffers(net)))


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_part_gives_in_training_what_it_gives_in_evaluation(
    way: Callable[[nn.Module], nn.Module], net: nn.Module, batch: Tensor
) -> None:
    if way is saved_and_loaded and any(map(is_parametrized, net.modules())):
        pytest.skip("torch itself cannot pickle a parametrized module")
    net.train()
    fl.freeze(net, "part")
    # Compiled, attention leaves torch's fast path, which has other last bits.
    with without_fast_path() if way is compiled else nullcontext():
        wanted = net.eval()(batch)
        model = way(net.train())
        assert torch.equal(assert_constant(model, batch), wanted)


def test_an_exported_model_keeps_its_frozen_part_constant(net: nn.Module, batch: Tensor) -> None:
    fl.freeze(net, "part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on its way through the model
        exported = torch.export.export(net.train(), (batch,), strict=False).module()
    assert_constant(exported, batch)


def test_a_ddp_wrapped_model_keeps_its_frozen_part_constant(
    net: nn.Module, batch: Tensor, tmp_path: Path
) -> None:
    if any(isinstance(module, nn.SyncBatchNorm) for module in net.modules()):
        pytest.skip("torch lets DDP wrap SyncBatchNorm on GPUs only")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        fl.freeze(net, "part")
        wrapped = nn.parallel.DistributedDataParallel(net).train()
        assert_constant(wrapped, batch).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is None for parameter in net.part.parameters())


def test_a_thawed_part_behaves_as_before(net: nn.Module, batch: Tensor) -> None:
    net.train()
    twin = copy.deepcopy(net)
    fl.freeze(net, "part").thaw()
    results = []
    for model in (net, twin):
        torch.manual_seed(1)
        results.append(model(batch))
    assert torch.equal(*results)


def test_freezing_changes_no_class_key_name_or_order(net: nn.Module) -> None:
    def seen() -> list[object]:
        return [
            [type(module) for module in net.modules()],
            list(net.state_dict()),
            [name for name, _ in net.named_parameters()],
            [id(parameter) for parameter in net.parameters()],
            [id(module) for module in net.modules()],
            [len(module._forward_pre_hooks) for module in net.modules()],
            [len(module._forward_hooks) for module in net.modules()],
        ]

    before = seen()
    fl.freeze(net, "part")
    assert seen() == before


class Centring(nn.Module):
    """A norm without torch's base class, as people write it."""

    def __init__(self, width: int, stem: str) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(f(width)) for f in (torch.ones, torch.zeros))
        self.register_buffer(f"{stem}_mean", torch.zeros(width))
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        mean = self.get_buffer(f"{self.stem}_mean")
        if self.training:
            mean.lerp_(x.detach().mean(0), 0.1)
        return (x - mean) * self.weight + self.bias


@pytest.mark.parametrize("stem", ["running", "moving"])
def test_a_norm_class_of_ones_own_frozen_in_part_keeps_its_statistics(stem: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Centring(4, stem), nn.Linear(4, 2))
    frozen = fl.freeze(net, "1.weight")
    net.train()(torch.randn(8, 4) + 3)
    assert torch.equal(net[1].get_buffer(f"{stem}_mean"), torch.zeros(4))
    assert frozen.verify().tensors == 2


def test_a_norm_class_of_ones_own_adapts_where_asked() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Centring(4, "running"), nn.Linear(4, 2))
    fl.freeze(net, "1", norm="adapt")
    net.train()(torch.randn(8, 4) + 3)
    assert bool(net[1].running_mean.all())


def test_a_norm_class_of_ones_own_is_of_the_kind_norm() -> None:
    net = nn.Sequential(Centring(4, "running"), nn.Linear(4, 2))
    assert fl.select(net, "kind:norm").names == ("0.weight", "0.bias")


def test_constants_of_a_frozen_batch_norm_do_not_keep_a_part_from_being_held() -> None:
    part = nn.Sequential(torchvision.ops.FrozenBatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Dropout())
    net = Net(part, 2)
    fl.freeze(net, list(part.parameters()))
    assert not any(module.training for module in net.train().part.modules())


def test_a_block_that_keeps_modes_leaves_held_modules_in_eval() -> None:
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), 4)
    fl.freeze(net, "part")
    with modes_kept(net):
        net.head.eval()
    assert net.head.training
    assert not any(module.training for module in net.part.modules())
    fl.thaw(net, "part")
    assert all(module.training for module in net.modules())


def test_a_part_that_is_frozen_within_a_block_that_keeps_modes_stays_in_eval() -> None:
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), 4)
    with modes_kept(net):
        fl.freeze(net, "part")
        net.train()
    assert not any(module.training for module in net.part.modules())
    fl.thaw(net, "part")
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("writes", [None, True], ids=["this torch", "as torch 2.9"])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_held_instance_norm_keeps_the_bits_of_its_statistics(
    count: int, writes: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if writes is not None:
        monkeypatch.setattr(held_layers, "writes_in_eval", lambda: writes)
    norm = nn.InstanceNorm1d(64, affine=True, track_running_stats=True).eval()
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(tensor, 0.5, 2)
    model, inputs = nn.Sequential(norm, nn.Linear(5, 2)), torch.randn(count, 64, 5)
    expected = copy.deepcopy(norm)(inputs)
    frozen = fl.freeze(model, "0")
    for held in (norm, copy.deepcopy(model)[0]):
        assert torch.equal(held.train()(inputs), expected)
        assert torch.equal(held.running_mean, norm.running_mean)
    frozen.verify()
    cut = fl.cut(model, inputs)
    assert torch.equal(cut.suffix(*cut.prefix(inputs)), model(inputs))
    frozen.verify()
    fl.thaw(model, "0")
    model.train()(inputs)
    assert not torch.equal(norm.running_mean, held.running_mean)


def test_an_instance_norm_switched_to_its_batch_still_goes_by_it_when_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_layers, "writes_in_eval", lambda: True)
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    norm.track_running_stats = False
    model, inputs = nn.Sequential(norm, nn.Linear(5, 2)), torch.randn(3, 3, 5)
    expected = copy.deepcopy(norm)(inputs)
    frozen = fl.freeze(model, "0")
    assert torch.equal(norm(inputs), expected)
    frozen.verify()


def test_an_instance_norm_is_frozen_in_inference_mode_too() -> None:
    held_layers.writes_in_eval.cache_clear()
    model = nn.Sequential(nn.InstanceNorm1d(3, affine=True), nn.Linear(5, 2))
    with torch.inference_mode():
        fl.freeze(model, "0").verify()
    assert not model.train()[0].training
