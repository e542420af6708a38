"""Optimizer groups: who is in, at which rate, with which decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl


@pytest.fixture
def net() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)]
    return nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(2, 2)})


def rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def decays(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["weight_decay"] for group in groups for name in group["param_names"]}


def test_every_trainable_parameter_is_in_one_group(net: nn.Module) -> None:
    groups = fl.param_groups(net, lr=0.1, layer_decay=0.5)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(map(id, net.parameters()))


def test_names_stand_beside_their_parameters(net: nn.Module) -> None:
    by_name = dict(net.named_parameters())
    for group in fl.param_groups(net, lr=0.1, layer_decay=0.5):
        pairs = zip(group["param_names"], group["params"], strict=True)
        assert all(by_name[name] is parameter for name, parameter in pairs)


def test_frozen_parameters_are_in_no_group(net: nn.Module) -> None:
    fl.freeze(net, "body")
    assert set(rates(fl.param_groups(net, lr=0.1))) == {"head.weight", "head.bias"}


def test_a_tied_parameter_is_in_one_group_once() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(2, 2), "head": nn.Linear(2, 2)})
    net["head"].weight = net["embed"].weight
    groups = fl.param_groups(net, lr=0.1)
    assert sum(len(group["params"]) for group in groups) == 2


def test_biases_and_norms_are_spared_decay_by_default(net: nn.Module) -> None:
    found = decays(fl.param_groups(net, lr=0.1, weight_decay=0.3))
    assert {name for name, decay in found.items() if decay == 0.3} == {
        "body.0.0.weight",
        "body.1.0.weight",
        "body.2.0.weight",
        "head.weight",
    }


def test_a_model_without_norms_is_no_error_for_the_default_rule() -> None:
    found = decays(fl.param_groups(nn.Linear(2, 2, bias=False), lr=0.1, weight_decay=0.3))
    assert found == {"weight": 0.3}


def test_no_decay_takes_any_selector(net: nn.Module) -> None:
    found = decays(fl.param_groups(net, lr=0.1, weight_decay=0.3, no_decay="head"))
    assert {name for name, decay in found.items() if decay == 0} == {"head.weight", "head.bias"}


def test_no_decay_of_none_decays_everything(net: nn.Module) -> None:
    assert set(
        decays(fl.param_groups(net, lr=0.1, weight_decay=0.3, no_decay="none")).values()
    ) == {0.3}


def test_a_misspelt_no_decay_is_an_error(net: nn.Module) -> None:
    with pytest.raises(fl.SelectorError, match="'haed' matches no parameter"):
        fl.param_groups(net, lr=0.1, no_decay="haed")


def test_the_rate_falls_by_the_factor_for_each_stage_below_the_last(net: nn.Module) -> None:
    found = rates(fl.param_groups(net, lr=0.8, layer_decay=0.5))
    assert [found[f"body.{n}.0.weight"] for n in range(3)] == [0.1, 0.2, 0.4]
    assert found["head.weight"] == 0.8


def test_multipliers_of_all_matching_selectors_apply(net: nn.Module) -> None:
    found = rates(fl.param_groups(net, lr=1.0, lr_mult={"head": 10, "kind:bias": 2}))
    assert (found["head.bias"], found["head.weight"], found["body.0.0.bias"]) == (20, 10, 2)


def test_a_misspelt_multiplier_is_an_error(net: nn.Module) -> None:
    with pytest.raises(fl.SelectorError, match="'haed' matches no parameter"):
        fl.param_groups(net, lr=0.1, lr_mult={"haed": 10})


def test_the_rule_is_carried_as_text_and_numbers(net: nn.Module) -> None:
    groups = fl.param_groups(
        net, lr=1, weight_decay=0, layer_decay=0.5, lr_mult={"head": 10}, no_decay=fl.kind("bias")
    )
    rule = {"lr": 1, "weight_decay": 0, "layer_decay": 0.5}
    texts = {"lr_mult": {"head": 10}, "no_decay": "kind:bias"}
    assert all(group["rule"] == {**rule, **texts} for group in groups)
    assert len({id(group["rule"]) for group in groups}) == len(groups)


def test_a_list_of_selectors_is_carried_as_text(net: nn.Module) -> None:
    groups = fl.param_groups(net, lr=1, no_decay=["kind:bias", "head & ~kind:bias"])
    assert groups[0]["rule"]["no_decay"] == "kind:bias | head & ~kind:bias"


def test_a_function_or_object_has_no_text_to_be_carried(net: nn.Module) -> None:
    head: Any = net.get_submodule("head")
    for no_decay in (head, fl.where(lambda name, *_: "head" in name)):
        assert fl.param_groups(net, lr=1, no_decay=no_decay)[0]["rule"]["no_decay"] is None
    mult: Any = {fl.exactly(head): 10}
    assert fl.param_groups(net, lr=1, lr_mult=mult)[0]["rule"]["lr_mult"] is None


def test_the_base_rate_is_written_beside_the_rate(net: nn.Module) -> None:
    groups = fl.param_groups(net, lr=0.8, layer_decay=0.5)
    assert [group["base_lr"] for group in groups] == [group["lr"] for group in groups]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_torchs_optimizers_take_the_groups(net: nn.Module, optimizer: Any) -> None:
    made = optimizer(fl.param_groups(net, lr=0.1, layer_decay=0.5), lr=1.0)
    assert {group["lr"] for group in made.param_groups} == {0.1, 0.05, 0.025, 0.0125}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "lr is 0; a learning rate is above 0"),
        ({"lr": -1.0}, r"lr is -1\.0; a learning rate is above 0"),
        ({"lr": float("nan")}, "lr is nan; a learning rate is above 0"),
        ({"lr": float("inf")}, "lr is inf; a learning rate is above 0"),
        ({"lr": 1, "weight_decay": -0.1}, r"weight_decay is -0\.1; it is 0 or above"),
        ({"lr": 1, "weight_decay": float("nan")}, "weight_decay is nan; it is 0 or above"),
        ({"lr": 1, "layer_decay": 0}, "layer_decay is 0; it lies above 0 and up to 1"),
        ({"lr": 1, "layer_decay": 1.5}, r"layer_decay is 1\.5; it lies above 0 and up to 1"),
        ({"lr": 1, "lr_mult": {"head": -1}}, r"lr_mult\['head'\] is -1; a multiplier is above 0"),
        ({"lr": 1, "lr_mult": {"head": 0}}, r"freeze it: fl\.freeze\(model, 'head'\)"),
        ({"lr": 1, "lr_mult": {"head": float("nan")}}, r"lr_mult\['head'\] is nan"),
    ],
)
def test_a_number_out_of_range_is_refused(net: nn.Module, options: Any, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fl.param_groups(net, **options)
