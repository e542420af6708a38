"""Which group a joiner goes to: the rule of `param_groups`, what `kept` says, options, or sight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sync_world import held, snapshot, switch, three_layers, trainable
from torch import nn

import frostline as fl


@pytest.fixture
def net() -> nn.ModuleDict:
    layers = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)]
    return nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(2, 2)})


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> learning rate and weight decay."""
    names = held(optimizer, model)
    pairs = zip(optimizer.param_groups, names, strict=True)
    return {n: (g["lr"], g["weight_decay"]) for g, inside in pairs for n in inside}


def test_who_thaws_gets_what_the_rule_would_have_given_from_the_start(net: nn.ModuleDict) -> None:
    rule: Any = {"lr": 0.8, "weight_decay": 0.3, "layer_decay": 0.5, "lr_mult": {"head": 3}}
    whole = settings(torch.optim.AdamW(fl.param_groups(net, **rule)), net)
    switch(net["body"], on=False)
    optimizer = torch.optim.AdamW(fl.param_groups(net, **rule))
    for layer in (2, 0, 1):
        switch(net["body"][layer], on=True)
        fl.sync(optimizer, net)
    assert settings(optimizer, net) == whole
    assert len(optimizer.param_groups) == len(set(whole.values()))


def test_the_rule_outlives_torch_save_and_a_restart(net: nn.ModuleDict, tmp_path: Any) -> None:
    switch(net["body"], on=False)
    groups = fl.param_groups(net, lr=0.8, weight_decay=0.3, layer_decay=0.5)
    torch.save(torch.optim.AdamW(groups).state_dict(), tmp_path / "optimizer.pt")
    resumed = torch.optim.AdamW(trainable(net), lr=7.0)
    resumed.param_groups.clear()
    for group in fl.param_groups(net, lr=1.0):
        resumed.add_param_group(dict(group))
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    switch(net["body"][2], on=True)
    fl.sync(resumed, net)
    assert settings(resumed, net)["body.2.0.weight"] == (0.4, 0.3)


def test_a_new_group_carries_the_rule_and_its_base(net: nn.ModuleDict) -> None:
    switch(net["body"], on=False)
    optimizer = torch.optim.SGD(fl.param_groups(net, lr=0.8, layer_decay=0.5))
    switch(net["body"], on=True)
    fl.sync(optimizer, net)
    rules = [group["rule"] for group in optimizer.param_groups]
    assert all(rule == rules[0] for rule in rules)
    assert [g["base_lr"] for g in optimizer.param_groups] == [
        g["lr"] for g in optimizer.param_groups
    ]


def test_rates_lowered_by_hand_are_lowered_for_the_joiner_too(net: nn.ModuleDict) -> None:
    switch(net["body"], on=False)
    optimizer = torch.optim.SGD(fl.param_groups(net, lr=0.8, layer_decay=0.5))
    for group in optimizer.param_groups:
        group["lr"] *= 0.25
    switch(net["body"][2], on=True)
    fl.sync(optimizer, net)
    assert settings(optimizer, net)["body.2.0.weight"][0] == pytest.approx(0.1)


def test_options_stand_in_for_their_part_of_the_rule(net: nn.ModuleDict) -> None:
    switch(net["body"], on=False)
    optimizer = torch.optim.SGD(fl.param_groups(net, lr=0.8, weight_decay=0.3, layer_decay=0.5))
    switch(net["body"][2], on=True)
    fl.sync(optimizer, net, lr=0.08)
    found = settings(optimizer, net)
    assert found["body.2.0.weight"] == (0.04, 0.3)
    assert found["body.2.1.weight"] == (0.04, 0.0)
    assert found["head.weight"] == (0.8, 0.3)


def test_a_function_as_no_decay_has_to_be_said_again(net: nn.ModuleDict) -> None:
    def vectors(_: str, parameter: torch.Tensor, __: nn.Module) -> bool:
        return parameter.dim() == 1

    switch(net["body"], on=False)
    optimizer = torch.optim.SGD(fl.param_groups(net, lr=0.8, no_decay=vectors))
    switch(net["body"][2], on=True)
    before = snapshot(optimizer)
    with pytest.raises(fl.ConfigError, match=r"function or object in no_decay.*Say it again"):
        fl.sync(optimizer, net)
    assert snapshot(optimizer) == before
    fl.sync(optimizer, net, no_decay=vectors)
    assert settings(optimizer, net)["body.2.1.weight"] == (0.8, 0.0)


def test_a_misspelt_option_is_an_error(net: nn.ModuleDict) -> None:
    switch(net["body"], on=False)
    optimizer = torch.optim.SGD(fl.param_groups(net, lr=0.8))
    switch(net["body"], on=True)
    before = snapshot(optimizer)
    with pytest.raises(fl.SelectorError, match="'haed' matches no parameter"):
        fl.sync(optimizer, net, lr_mult={"haed": 3})
    assert snapshot(optimizer) == before


def test_by_hand_a_joiner_gets_the_highest_rate_and_the_rest_of_its_group() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(
        [
            {"params": list(net[1].parameters()), "lr": 0.01},
            {"params": list(net[2].parameters()), "lr": 0.1},
        ],
        momentum=0.9,
        weight_decay=0.2,
    )
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    assert held(optimizer, net)[1] == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_by_hand_a_visible_split_of_decay_is_followed(net: nn.ModuleDict) -> None:
    optimizer = torch.optim.AdamW(
        [
            {"params": [net["head"].weight], "weight_decay": 0.2},
            {"params": [net["head"].bias], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    fl.sync(optimizer, net)
    found = settings(optimizer, net)
    assert {name for name, (_, decay) in found.items() if decay} == {
        "body.0.0.weight",
        "body.1.0.weight",
        "body.2.0.weight",
        "head.weight",
    }
    assert len(optimizer.param_groups) == 2


def test_by_hand_options_make_a_group_like_the_others() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.AdamW(trainable(net), lr=0.1, betas=(0.5, 0.6), fused=True)
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.4, weight_decay=0.05)
    old, new = optimizer.param_groups
    assert (new["lr"], new["weight_decay"]) == (0.4, 0.05)
    for group in (old, new):
        group.update(lr=0, weight_decay=0, params=0)
    assert old == new


def test_by_hand_kept_leads_back_to_the_group_that_was_left() -> None:
    net = three_layers()
    groups = [
        {"params": list(net[0].parameters()), "lr": 0.001, "name": "body", "momentum": 0.5},
        {"params": list(net[2].parameters()), "lr": 0.1, "name": "head"},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    switch(net[0], on=False)
    switch(net[1], on=False)
    left = fl.sync(optimizer, net)
    switch(net[0], on=True)
    fl.sync(optimizer, net, kept=left)
    assert held(optimizer, net) == [{"0.weight", "0.bias"}, {"2.weight", "2.bias"}]


def test_with_a_rule_a_returning_layer_goes_by_it_and_not_to_the_group_it_left(
    net: nn.ModuleDict,
) -> None:
    optimizer = torch.optim.SGD(fl.param_groups(net, lr=0.8, layer_decay=0.5, weight_decay=0.0))
    switch(net["body"][2], on=False)
    left = fl.sync(optimizer, net)
    for group in optimizer.param_groups:
        if group["base_lr"] == 0.4:
            group.update(lr=0.03, base_lr=0.03)
    switch(net["body"][2], on=True)
    fl.sync(optimizer, net, kept=left)
    assert settings(optimizer, net)["body.2.0.weight"][0] == 0.4


def test_a_group_with_another_momentum_is_not_joined() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(
        [
            {"params": list(net[1].parameters()), "momentum": 0.5, "lr": 0.2},
            {"params": list(net[2].parameters()), "lr": 0.4},
        ],
        momentum=0.9,
    )
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.2)
    assert held(optimizer, net)[2] == {"0.weight", "0.bias"}
    assert optimizer.param_groups[2]["momentum"] == 0.9


def test_a_label_is_no_hyperparameter() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(
        [
            {"params": list(net[1].parameters()), "name": "body", "lr": 0.2},
            {"params": list(net[2].parameters()), "name": "head", "lr": 0.4},
        ]
    )
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.2)
    assert held(optimizer, net)[0] == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_tensor_rate_stays_a_tensor_of_its_own() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.Adam(trainable(net), lr=torch.tensor(0.1))
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.4)
    old, new = (group["lr"] for group in optimizer.param_groups)
    assert torch.equal(new, torch.tensor(0.4))
    assert torch.equal(old, torch.tensor(0.1))


def test_rates_of_zero_are_refused() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.0)
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match=r"has the learning rate 0, so it cannot be seen"):
        fl.sync(optimizer, net, lr=0.1)


def test_the_empty_group_of_a_model_with_another_rule_is_not_taken() -> None:
    net, other = three_layers(), three_layers()
    switch(net[0], on=False)
    switch(other[0], on=False)
    groups = [
        *fl.param_groups(other, lr=0.2, weight_decay=0.0, lr_mult={"1": 0.5}),
        *fl.param_groups(net, lr=0.4, weight_decay=0.0, lr_mult={"0": 0.25}),
    ]
    optimizer = torch.optim.SGD(groups)
    switch(other[1], on=False)
    fl.sync(optimizer, other)
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    assert held(optimizer, net) == [
        set(),
        set(),
        {"1.weight", "1.bias", "2.weight", "2.bias"},
        {"0.weight", "0.bias"},
    ]
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[3]["lr"] == 0.1
