"""Optimizers of other libraries: rates of their own, states of other shapes, states made early."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sync_world import bits, held, moved, switch, three_layers, timm_optim, train, trainable
from torch import nn
from transformers import Adafactor, BertConfig, BertModel

import frostline as fl

timm = timm_optim()


class Rateless(torch.optim.Optimizer):
    """Without any `lr` in its groups, and with a flattened, a factored and a one-number state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"weight_decay": 0.0})

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["flat"] = parameter.grad.flatten()
                state["row"] = parameter.grad.sum(dim=-1)
                state["norm"] = parameter.grad.norm().reshape(1)
                parameter.data.sub_(parameter.grad * 0.1)


class Masked(torch.optim.SGD):
    """Makes a mask where a group is added, which its step then reads."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            self.state[parameter]["mask"] = parameter.detach().abs() < 9

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's
        for group in self.param_groups:
            for parameter in group["params"]:
                mask = self.state[parameter]["mask"]
                parameter.data.sub_(group["lr"] * parameter.grad * mask)


def relative(params: Any) -> torch.optim.Optimizer:
    return Adafactor(params, lr=None, relative_step=True, scale_parameter=True)


@pytest.mark.parametrize("make", [relative, Rateless])
def test_an_optimizer_that_finds_its_own_rate_takes_joiners(make: Any) -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = make(trainable(net))
    train(net, optimizer)
    switch(net[0], on=True)
    assert fl.sync(optimizer, net).groups_added == 0
    before = bits(net)
    train(net, optimizer)
    assert moved(net, before) == set(before)


def test_a_new_group_of_one_that_finds_its_own_rate_has_none_either() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = relative(trainable(net))
    switch(net[0], on=True)
    assert fl.sync(optimizer, net, weight_decay=0.1).groups_added == 1
    assert [g["lr"] for g in optimizer.param_groups] == [None, None]
    assert held(optimizer, net)[1] == {"0.weight", "0.bias"}


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"layer_decay": 0.5}])
def test_a_rate_cannot_be_asked_of_one_that_finds_its_own(options: Any) -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = relative(trainable(net))
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match=r"was asked for, but .* have no learning rate"):
        fl.sync(optimizer, net, **options)


@pytest.mark.parametrize("make", [relative, Rateless])
def test_the_doctor_reads_an_optimizer_without_a_rate(make: Any) -> None:
    net = three_layers()
    assert fl.doctor(net, optimizer=make(net.parameters())).ok


@pytest.mark.parametrize("make", [relative, Rateless])
def test_a_state_of_its_own_shape_is_given_back_and_loaded(make: Any) -> None:
    net = three_layers()
    optimizer = make(net.parameters())
    train(net, optimizer)
    saved = fl.optimizer_state(optimizer, net)
    switch(net[1], on=False)
    left = fl.sync(optimizer, net)
    switch(net[1], on=True)
    fl.sync(optimizer, net, kept=left)
    assert optimizer.state[net[1].weight].keys() == left.states["1.weight"].keys()
    again = make(net.parameters())
    fl.load_optimizer_state(again, net, saved)
    assert again.state[net[1].weight].keys() == left.states["1.weight"].keys()


def test_a_state_without_a_key_in_common_is_refused_of_any_optimizer() -> None:
    net = three_layers()
    optimizer = Rateless(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match=r"0\.weight holds step, but this Rateless keeps flat"):
        fl.sync(optimizer, net, kept={"0.weight": {"step": 3}})


def test_a_kept_state_of_a_parameter_resized_since_is_refused() -> None:
    net = three_layers()
    optimizer = Rateless(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    left = fl.sync(optimizer, net)
    net[0].weight.data = torch.zeros(5, 3)
    switch(net[0], on=True)
    message = r"0\.weight left with the shape \(3, 3\), but has \(5, 3\) now"
    with pytest.raises(fl.ConfigError, match=message):
        fl.sync(optimizer, net, kept=left)


def test_a_joiner_begins_with_what_its_optimizer_makes_where_a_group_is_added() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = Masked(trainable(net), lr=0.1)
    switch(net[0], on=True)
    assert fl.sync(optimizer, net).groups_added == 0
    assert len(optimizer.param_groups) == 1
    before = bits(net)
    train(net, optimizer)
    assert moved(net, before) == set(before)


def test_an_optimizer_that_prepares_its_parameters_once_takes_none_later() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = timm.create_optimizer_v2(trainable(net), opt="adahessian", lr=0.1)
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match=r"Adahessian prepares its parameters .*0\.weight\."):
        fl.sync(optimizer, net)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad, relative])
def test_resized_embeddings_begin_again_at_the_next_sync(make: Any) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(vocab_size=11, intermediate_size=8, max_position_embeddings=12, **sizes)
    model = BertModel(config, add_pooling_layer=False)
    optimizer = make(model.parameters())
    model(torch.tensor([[1, 2]])).last_hidden_state.sum().backward()
    optimizer.step()
    model.resize_token_embeddings(14)
    assert "outgrown-state" in fl.doctor(model, optimizer=optimizer).codes
    others = len(optimizer.state) - 1
    synced = fl.sync(optimizer, model)
    assert synced.dropped == ("embeddings.word_embeddings.weight",)
    assert "; 1 parameter (embeddings.word_embeddings.weight) begin again" in str(synced)
    assert "outgrown-state" not in fl.doctor(model, optimizer=optimizer).codes
    model(torch.tensor([[1, 2, 13]])).last_hidden_state.square().sum().backward()
    optimizer.step()
    assert sum(int(s["step"]) == 2 for s in optimizer.state.values()) == others


def test_states_of_a_lookahead_are_found_outgrown_too() -> None:
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3))
    optimizer = timm.Lookahead(torch.optim.AdamW(net.parameters()), k=1)
    net(torch.tensor([0])).sum().backward()
    optimizer.step()
    net[0].weight.data = torch.zeros(6, 3)
    assert fl.sync(optimizer, net).dropped == ("0.weight",)
    assert net[0].weight.grad is None


def test_flattened_states_are_not_taken_for_outgrown_ones() -> None:
    net = three_layers()
    optimizer = Rateless(net.parameters())
    train(net, optimizer)
    assert fl.sync(optimizer, net).dropped == ()


def fused(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trainable(net), lr=0.1, momentum=0.9, dampening=0.5, fused=True)


def test_a_dampened_joiner_of_fused_sgd_is_refused_and_gets_its_whole_step_unfused() -> None:
    net, plain = three_layers(), three_layers()
    switch(net[0], on=False)
    optimizer = fused(net)
    train(net, optimizer)
    switch(net[0], on=True)
    message = r"dampening=0\.5 would give parameters that begin beside others only 0\.5 of"
    with pytest.raises(fl.ConfigError, match=message):
        fl.sync(optimizer, net)
    for group in optimizer.param_groups:
        group["fused"] = False
    fl.sync(optimizer, net)
    plain.load_state_dict(net.state_dict())
    train(net, optimizer)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    assert torch.equal(net[0].weight, plain[0].weight)


def test_a_dampened_beginner_is_refused_where_states_are_loaded() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = fused(net)
    train(net, optimizer)
    saved = fl.optimizer_state(optimizer, net)
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match=r"fused SGD with dampening=0\.5"):
        fl.load_optimizer_state(fused(net), net, saved, missing="fresh")


def test_all_begin_whole_where_none_has_momentum_yet() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = fused(net)
    switch(net[0], on=True)
    assert fl.sync(optimizer, net).joined == ("0.weight", "0.bias")


def test_a_group_that_nothing_leaves_may_keep_its_parameters_in_a_tuple() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD([{"params": list(layer.parameters())} for layer in model], lr=0.1)
    optimizer.param_groups[1]["params"] = tuple(optimizer.param_groups[1]["params"])
    fl.freeze(model, "0.bias")
    assert fl.sync(optimizer, model).left == ("0.bias",)
