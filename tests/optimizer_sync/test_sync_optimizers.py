"""Every optimizer of torch: who thaws moves, who freezes rests, who stays notices nothing."""

from __future__ import annotations

import pytest
import torch
from sync_world import OPTIMIZERS, Make, bits, moved, switch, three_layers, train, trainable
from torch import nn

import frostline as fl

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@every_optimizer
def test_a_thawed_layer_moves_with_the_next_step(make: Make) -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = make(trainable(net))
    train(net, optimizer, steps=2)
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    before = bits(net)
    train(net, optimizer, steps=2)
    assert {"0.weight", "0.bias"} <= moved(net, before)


@every_optimizer
def test_a_frozen_layer_keeps_its_bits_through_five_steps(make: Make) -> None:
    net = three_layers()
    optimizer = make(net.parameters())
    train(net, optimizer, steps=3)
    switch(net[1], on=False)
    fl.sync(optimizer, net)
    before = bits(net)
    for _ in range(5):
        optimizer.zero_grad(set_to_none=False)
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert moved(net, before) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@every_optimizer
def test_who_stays_goes_on_as_if_nobody_had_left(make: Make) -> None:
    synced, plain = three_layers(), three_layers()
    pair = [(net, make(net.parameters())) for net in (synced, plain)]
    for net, optimizer in pair:
        train(net, optimizer, steps=3)
        switch(net[1], on=False)
        for parameter in net[1].parameters():
            parameter.grad = None
    fl.sync(pair[0][1], synced)
    for net, optimizer in pair:
        train(net, optimizer, steps=3)
    assert moved(synced, bits(plain)) == set()


@every_optimizer
def test_a_layer_that_comes_back_with_its_state_goes_on_as_if_it_had_not_left(make: Make) -> None:
    synced, plain = three_layers(), three_layers()
    pair = [(net, make(net.parameters())) for net in (synced, plain)]
    for net, optimizer in pair:
        train(net, optimizer, steps=3)
    switch(synced[1], on=False)
    left = fl.sync(pair[0][1], synced)
    switch(synced[1], on=True)
    fl.sync(pair[0][1], synced, kept=left)
    for net, optimizer in pair:
        train(net, optimizer, steps=3)
    assert moved(synced, bits(plain)) == set()


def test_a_joiner_of_adagrad_begins_with_the_initial_sum() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.Adagrad(trainable(net), initial_accumulator_value=0.25)
    train(net, optimizer)
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    state = optimizer.state[net[0].weight]
    assert torch.equal(state["sum"], torch.full((3, 3), 0.25))
    assert state["step"] == 0


def test_a_joiner_of_a_shared_adagrad_is_shared_too() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.Adagrad(trainable(net))
    optimizer.share_memory()
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    assert optimizer.state[net[0].weight]["sum"].is_shared()


def test_a_fused_joiner_has_its_step_beside_it() -> None:
    net = three_layers()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    train(net, optimizer)
    switch(net[0], on=False)
    left = fl.sync(optimizer, net)
    switch(net[0], on=True)
    plain = {name: {**state, "step": state["step"].double()} for name, state in left.states.items()}
    fl.sync(optimizer, net, kept=plain)
    step = optimizer.state[net[0].weight]["step"]
    assert (step.dtype, step.device) == (torch.float32, net[0].weight.device)


def test_sparse_adam_takes_a_thawed_embedding() -> None:
    net = nn.ModuleList([nn.Embedding(4, 2, sparse=True) for _ in range(2)])
    net[0].weight.requires_grad_(False)
    optimizer = torch.optim.SparseAdam([net[1].weight])
    net[0].weight.requires_grad_(True)
    fl.sync(optimizer, net)
    before = bits(net)
    net[0](torch.tensor([1])).sum().backward()
    optimizer.step()
    assert moved(net, before) == {"0.weight"}


def test_sparse_adam_has_no_weight_decay_to_ask_for() -> None:
    net = nn.ModuleList([nn.Embedding(4, 2, sparse=True) for _ in range(2)])
    optimizer = torch.optim.SparseAdam([net[1].weight])
    with pytest.raises(fl.ConfigError, match=r"weight_decay=0\.1 was asked for, but"):
        fl.sync(optimizer, net, weight_decay=0.1)


def test_muon_takes_a_thawed_matrix_and_refuses_a_vector() -> None:
    net = three_layers()
    switch(net, on=False)
    net[2].weight.requires_grad_(True)
    optimizer = torch.optim.Muon([net[2].weight])
    net[1].weight.requires_grad_(True)
    assert fl.sync(optimizer, net).joined == ("1.weight",)
    net[1].bias.requires_grad_(True)
    with pytest.raises(
        fl.ConfigError, match=r"Muon takes matrices only, but 1\.bias has the shape"
    ):
        fl.sync(optimizer, net)
    others = torch.optim.AdamW([net[0].bias])
    is_matrix = fl.where(lambda _name, parameter, _module: parameter.dim() == 2)
    net[0].weight.requires_grad_(True)
    assert fl.sync(optimizer, net, among=is_matrix).joined == ("0.weight",)
    net[0].bias.requires_grad_(True)
    assert fl.sync(others, net, among=~is_matrix).joined == ("1.bias",)


def test_what_another_optimizer_steps_too_is_warned_of() -> None:
    net = three_layers()
    switch(net, on=True)
    slow, fast = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (net[1], net[2]))
    with pytest.warns(UserWarning, match=r"2\.weight, 2\.bias joined the SGD, and the SGD has it"):
        assert "2.weight" in fl.sync(slow, net).joined
    assert fl.sync(fast, net, among="2").joined == ()


def test_lbfgs_is_refused() -> None:
    net = three_layers()
    with pytest.raises(fl.ConfigError, match=r"LBFGS keeps one flat history.*Make a new one"):
        fl.sync(torch.optim.LBFGS(net.parameters()), net)
