"""Every optimizer of three outside databases: sync, state by name, and frozen rows hold with it."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import outside_optimizers as outside
import pytest
import torch
from outside_optimizers import Outside
from sync_world import bits, moved, switch, trainable
from torch import nn

import frostline as fl

DATABASES = {
    "torch": (outside.torchs, "expecttest"),  # its test helpers import it
    "timm": (outside.timms, "timm"),
    "pytorch_optimizer": (outside.pytorch_optimizers, "pytorch_optimizer"),
}
every_database = pytest.mark.parametrize("database", DATABASES)


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    """Some compile their step: half a minute, and threads of the compiler that stay."""
    with torch.compiler.set_stance("force_eager"):
        yield


def net_for(one: Outside) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4, bias=one.bias) for _ in range(3)))


def train(one: Outside, net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The same steps for the same numbers, also where an optimizer draws at random."""
    inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))

    @torch.enable_grad()
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = net(inputs).square().mean()
        loss.backward(create_graph=one.second)
        return loss

    for step in steps:
        torch.manual_seed(step)
        random.seed(step)
        if one.backward or not one.closure:
            closure()
        optimizer.step(closure) if one.closure else optimizer.step()


def check_sync(one: Outside) -> None:
    """Who thaws joins and moves, who freezes leaves and rests, who comes back goes on."""
    net = net_for(one)
    switch(net[0], on=False)
    optimizer = one.make(trainable(net))
    train(one, net, optimizer, range(2))
    switch(net[0], on=True)
    assert len(fl.sync(optimizer, net).joined) == 1 + one.bias
    before = bits(net)
    train(one, net, optimizer, range(2, 4))
    assert one.name in outside.SLOW or moved(net, before) == set(before), "a joiner does not move"
    switch(net[1], on=False)
    left = fl.sync(optimizer, net)
    before = bits(net[1])
    train(one, net, optimizer, range(4, 6))
    assert not moved(net[1], before), "who left moves"
    switch(net[1], on=True)
    fl.sync(optimizer, net, kept=left)
    train(one, net, optimizer, range(6, 7))
    assert one.name in outside.SLOW or moved(net[1], before), "who came back does not move"
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def check_state(one: Outside) -> None:
    """What was saved goes on, after a way through a file, with the bits of the uninterrupted."""
    whole = net_for(one)
    optimizer = one.make(list(whole.parameters()))
    train(one, whole, optimizer, range(3))
    file = io.BytesIO()
    torch.save((whole.state_dict(), fl.optimizer_state(optimizer, whole)), file)
    train(one, whole, optimizer, range(3, 5))
    file.seek(0)
    weights, state = torch.load(file, weights_only=one.name not in outside.OBJECTS)
    resumed = net_for(one)
    resumed.load_state_dict(weights)
    again = one.make(list(resumed.parameters()))
    fl.load_optimizer_state(again, resumed, state)
    train(one, resumed, again, range(3, 5))
    assert not moved(resumed, bits(whole)), "it goes on otherwise"


def check_rows(one: Outside) -> None:
    """Frozen rows stay to the bit."""
    net = net_for(one)
    fl.freeze(net, "rows:1.weight[1:3]")
    optimizer = one.make(trainable(net))
    before = net[1].weight.detach().clone()
    train(one, net, optimizer, range(2))
    assert torch.equal(net[1].weight[1:3], before[1:3]), "frozen rows move"


def failures(database: str, check: Callable[[Outside], None], refused: dict[str, str]) -> list[str]:
    """A line for each optimizer that does not pass, or is refused with other words than told."""
    make, package = DATABASES[database]
    pytest.importorskip(package)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of old names and of gradients of gradients
        for one in make():
            words = next((w for name, w in refused.items() if is_called(one, name)), "")
            try:
                check(one)
                told: Any = "is not refused" if words else ""
            except fl.ConfigError as error:
                told = "" if words and words in str(error) else error
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
            if told:
                found.append(f"{one.name}: {told}")
    return found


def is_called(one: Outside, name: str) -> bool:
    """Whether the optimizer goes by the name, or by all its words where inputs have names too."""
    return one.name == name or set(name.split()) <= set(one.name.split())


@every_database
def test_every_optimizer_takes_joiners_and_lets_go(database: str) -> None:
    refused = {**outside.REFUSED, **outside.SYNC_REFUSED}
    assert failures(database, check_sync, refused) == []


@every_database
def test_every_optimizers_state_goes_on_by_name(database: str) -> None:
    refused = {**outside.REFUSED, **outside.STATE_REFUSED}

    def check(one: Outside) -> None:
        if one.name not in outside.STATE_NOT_WHOLE:
            check_state(one)

    assert failures(database, check, refused) == []


@every_database
def test_frozen_rows_stay_under_every_optimizer(database: str) -> None:
    assert failures(database, check_rows, {}) == []
