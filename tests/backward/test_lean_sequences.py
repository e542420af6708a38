"""A thousand random freezes, thaws, forwards and backwards: equal gradients, and no leaks."""

from __future__ import annotations

import copy
import gc
import random
import weakref

import pytest
import torch
from lean_world import is_on, same
from torch import Tensor, nn

import frostline as fl


def _net(number: int) -> nn.Module:
    middle: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        nn.Sequential(nn.ConvTranspose2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.LeakyReLU()),
        nn.Sequential(nn.Conv2d(6, 6, 1, groups=3), nn.InstanceNorm2d(6), nn.ReLU6(inplace=True)),
        nn.Sequential(nn.Dropout(0.3), nn.Conv2d(6, 6, 3, padding=1), nn.GELU()),
    ]
    end = [nn.MaxPool2d(3, 2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.MaxPool2d(2)]
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), middle[number], nn.Hardtanh(), end[number]]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


@pytest.mark.parametrize("number", range(4))
def test_gradients_always_equal_and_nothing_leaks(number: int) -> None:
    choose = random.Random(number)
    plain = _net(number)
    x = torch.randn(2, 3, 10, 10)
    plain(x)
    leaned = copy.deepcopy(plain)
    names = [name for name, _ in plain.named_parameters()]
    kept: list[weakref.ref[Tensor]] = []
    handle = fl.lean(leaned, at_least_bytes=0)
    for turn in range(250):
        wanted = {name for name in names if choose.random() < 0.5}
        given = x.clone().requires_grad_(choose.random() < 0.3 or not wanted)
        training = choose.random() < 0.5
        found = [_turn(m, wanted, given, training, turn, kept) for m in (plain, leaned)]
        assert same(*found), (turn, wanted)
        assert same(plain.buffers(), leaned.buffers())
    handle.remove()
    gc.collect()
    assert not is_on()
    own = {id(t) for t in (*leaned.buffers(), *leaned.parameters(), *plain.buffers())}
    assert not [t for r in kept if (t := r()) is not None and id(t) not in own]


def _turn(
    model: nn.Module,
    wanted: set[str],
    x: Tensor,
    training: bool,
    seed: int,
    kept: list[weakref.ref[Tensor]],
) -> list[Tensor | None]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
        parameter.grad = None
    model.train(training)
    torch.manual_seed(seed)

    def pack(tensor: Tensor) -> Tensor:
        if tensor is not x and not isinstance(tensor, nn.Parameter):
            kept.append(weakref.ref(tensor))
        return tensor

    if seed % 2:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(x)
    else:
        output = model(x)
    (output * torch.linspace(-1, 1, 4)).sum().backward()
    gradients = [p.grad for p in model.parameters()] + [x.grad]
    x.grad = None
    return gradients
