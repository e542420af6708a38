"""Freezing and thawing: gradients, buffers and modes switched, and switched back."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import frostline as fl
from blocks_net import Net, batch, modes, state, wanting, with_mixed_modes


@pytest.fixture
def net() -> Net:
    return Net()


# Freezing


def test_freezing_switches_gradients_off_and_leaves_the_rest_on(net: Net) -> None:
    fl.freeze(net, "body")
    assert wanting(net) == {"head.weight", "head.bias"}


def test_freezing_clears_stale_gradients(net: Net) -> None:
    net(batch()).sum().backward()
    fl.freeze(net, "body")
    assert all(parameter.grad is None for parameter in net.body.parameters())
    assert net.head.weight.grad is not None


def test_a_backward_through_an_older_graph_leaves_no_gradient_on_the_frozen(net: Net) -> None:
    loss = net(batch()).sum()
    fl.freeze(net, "body")
    loss.backward()
    assert all(parameter.grad is None for parameter in net.body.parameters())


def test_freezing_holds_the_wholly_frozen_part_in_eval_at_once(net: Net) -> None:
    net.train()
    fl.freeze(net, "body")
    assert not any(module.training for module in net.body.modules())
    assert net.training
    assert net.head.training


def test_train_returns_the_module_even_where_it_is_held(net: Net) -> None:
    fl.freeze(net, "body")
    assert net.body.train() is net.body
    assert net.body.eval() is net.body


def test_freezing_twice_is_the_same_as_once(net: Net) -> None:
    once = fl.freeze(net, "body")
    before = state(net)
    twice = fl.freeze(net, "body")
    assert state(net) == before
    assert twice.fingerprint == once.fingerprint
    twice.thaw()
    assert wanting(net) == {name for name, _ in net.named_parameters()}


def test_two_freezes_that_meet_in_a_block_hold_its_dropout(net: Net) -> None:
    fl.freeze(net, "body.0.0")
    assert net.body[0][2].training
    fl.freeze(net, "body.0.1")
    assert not net.train().body[0][2].training


def test_a_partly_frozen_block_keeps_its_dropout(net: Net) -> None:
    fl.freeze(net, "body.0.0")
    assert net.train().body[0][2].training


@pytest.mark.parametrize("part", ["body.0.1", "body.0.1.weight", "body.0.1.bias"])
def test_a_norm_frozen_in_any_part_keeps_its_statistics(net: Net, part: str) -> None:
    fl.freeze(net, part)
    before = net.body[0][1].running_mean.clone()
    net.train()(batch())
    assert torch.equal(net.body[0][1].running_mean, before)


def test_statistics_that_were_not_selected_stay_free() -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    net = nn.Sequential(body, nn.Linear(2, 2))
    fl.freeze(net, body[0])
    before = body[1].running_mean.clone()
    net.train()(torch.randn(4, 2))
    assert not torch.equal(body[1].running_mean, before)


def test_a_norm_frozen_in_part_still_trains_its_other_part(net: Net) -> None:
    frozen = fl.freeze(net, "body.0.1.weight")
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.1)
    before = net.body[0][1].bias.clone()
    net.train()(batch()).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(net.body[0][1].bias, before)
    frozen.verify()


def test_a_tied_parameter_is_frozen_under_both_its_names() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(4, 4), "head": nn.Linear(4, 4)})
    net["head"].weight = net["embed"].weight
    fl.freeze(net, "embed")
    assert wanting(net) == {"head.bias"}


def test_printing_the_handle_shows_the_models_table(net: Net) -> None:
    text = str(fl.freeze(net, "body"))
    assert "eval, held" in text
    assert "10 of 66 parameters trainable" in text


def test_the_handle_names_what_it_froze(net: Net) -> None:
    assert fl.freeze(net, "body.1.0").names == ("body.1.0.weight", "body.1.0.bias")


def test_the_handles_fingerprint_is_that_of_the_selection(net: Net) -> None:
    assert fl.freeze(net, "body").fingerprint == fl.fingerprint(net, "body")


def test_freezing_none_freezes_nothing(net: Net) -> None:
    before = state(net)
    fl.freeze(net, "none")
    assert state(net) == before


# norm="adapt"


def test_an_adapting_norm_follows_the_data_and_not_the_gradient(net: Net) -> None:
    frozen = fl.freeze(net, "body", norm="adapt")
    norm = net.body[0][1]
    before = [t.clone() for t in (norm.running_mean, norm.weight, norm.bias)]
    net.train()(batch()).sum().backward()
    assert not torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.weight, before[1])
    assert torch.equal(norm.bias, before[2])
    frozen.verify()


def test_an_adapting_norm_leaves_the_dropout_beside_it_held(net: Net) -> None:
    fl.freeze(net, "body", norm="adapt")
    net.train()
    assert net.body[0][1].training
    assert not net.body[0][2].training


def test_an_adapting_norm_stops_at_eval(net: Net) -> None:
    fl.freeze(net, "body", norm="adapt")
    net.train().eval()
    assert not net.body[0][1].training


def test_an_adapting_norm_keeps_adapting_after_a_copy(net: Net) -> None:
    fl.freeze(net, "body", norm="adapt")
    twin = copy.deepcopy(net).train()
    before = twin.body[0][1].running_mean.clone()
    twin(batch())
    assert not torch.equal(twin.body[0][1].running_mean, before)


def test_freezing_again_with_hold_ends_the_adapting(net: Net) -> None:
    fl.freeze(net, "body", norm="adapt")
    fl.freeze(net, "body", norm="hold")
    assert not net.train().body[0][1].training


# Thawing


def test_thawing_gives_each_module_back_its_own_mode(net: Net) -> None:
    before = modes(with_mixed_modes(net))
    fl.freeze(net, "body").thaw()
    assert modes(net) == before


def test_thawing_leaves_nothing_of_the_freeze_behind(net: Net) -> None:
    before = state(with_mixed_modes(net))
    fl.freeze(net, "body").thaw()
    assert state(net) == before


def test_a_thawed_copy_follows_its_own_mode_and_not_the_originals(net: Net) -> None:
    fl.freeze(net.train(), "body")
    twin = copy.deepcopy(net)
    fl.thaw(twin, "body")
    assert all(module.training for module in twin.modules())
    assert not any(module.training for module in net.train().body.modules())


def test_a_partial_thaw_leaves_the_rest_held(net: Net) -> None:
    fl.freeze(net.train(), "body")
    fl.thaw(net, "body.1")
    assert wanting(net) == {name for name, _ in net.named_parameters() if "body.0" not in name}
    assert all(module.training for module in net.body[1].modules())
    assert not any(module.training for module in net.train().body[0].modules())


def test_the_handle_thaws_the_named_part_of_what_it_froze(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    frozen.thaw("body.1 | head")
    assert wanting(net) == {name for name, _ in net.named_parameters() if "body.0" not in name}


def test_the_handle_thaws_the_named_part_even_after_the_model_grew(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body.insert(0, nn.Linear(4, 4))
    frozen.thaw("body.1.0")
    assert wanting(net) == {
        f"{path}.{leaf}" for path in ("body.0", "body.1.0", "head") for leaf in ("weight", "bias")
    }


def test_thawing_an_overlap_thaws_it_for_both_freezes(net: Net) -> None:
    one = fl.freeze(net, "body.0 | body.1.0")
    other = fl.freeze(net, "body.1")
    other.thaw()
    assert wanting(net) == {name for name, _ in net.named_parameters() if "body.0" not in name}
    one.verify()
    other.verify()


def test_a_train_that_somebody_had_set_before_is_given_back(net: Net) -> None:
    def disabled(mode: bool = True) -> nn.Module:  # noqa: ARG001 - stands in for module.train
        return net.body

    net.body.train = disabled  # type: ignore[method-assign]
    fl.freeze(net, "body").thaw()
    assert net.body.__dict__["train"] is disabled


def test_train_only_thaws_the_named_and_freezes_the_rest(net: Net) -> None:
    fl.freeze(net, "head")
    frozen = fl.train_only(net, "head")
    assert wanting(net) == {"head.weight", "head.bias"}
    assert not any(module.training for module in net.train().body.modules())
    assert net.head.training
    assert len(frozen.names) == 8


def test_train_only_twice_ends_at_the_second(net: Net) -> None:
    fl.train_only(net, "head")
    fl.train_only(net, "body.1")
    assert wanting(net) == {name for name, _ in net.named_parameters() if "body.1" in name}


def test_integer_parameters_are_frozen_and_thawed_without_gradients() -> None:
    net = nn.ModuleDict({"body": nn.ParameterDict(), "head": nn.Linear(2, 2)})
    net["body"]["codes"] = nn.Parameter(torch.arange(3), requires_grad=False)
    fl.freeze(net, "body").thaw()
    assert wanting(net) == {"head.weight", "head.bias"}


# Memory


@pytest.mark.parametrize("thawed", [False, True])
def test_a_dropped_model_is_freed_at_once(thawed: bool) -> None:
    net = Net()
    frozen = fl.freeze(net, "body")
    if thawed:
        frozen.thaw()
    str(frozen)
    frozen.verify()
    alive = [weakref.ref(module) for module in net.modules()]
    gc.disable()
    try:
        del net, frozen
        assert [reference() for reference in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_a_dropped_copy_is_freed_at_once(net: Net) -> None:
    fl.freeze(net, "body")
    alive = weakref.ref(copy.deepcopy(net).body)
    assert alive() is None


def test_a_copy_stands_on_its_own_once_the_original_is_gone() -> None:
    net = Net()
    fl.freeze(net, "body")
    twin = copy.deepcopy(net)
    del net
    assert twin.body.train() is twin.body


def test_a_handle_that_froze_nothing_thaws_nothing() -> None:
    net = nn.Linear(2, 2)
    fl.train_only(net, "all").thaw()
    assert all(parameter.requires_grad for parameter in net.parameters())
