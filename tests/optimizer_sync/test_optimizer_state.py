"""Optimizer state by name: training goes on bit for bit, whatever the groups and their order."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sync_world import OPTIMIZERS, Make, bits, moved, snapshot, switch, three_layers, train
from torch import nn

import frostline as fl

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@pytest.fixture
def net() -> nn.Sequential:
    return three_layers()


def in_another_order(net: nn.Sequential) -> list[dict[str, Any]]:
    """Groups in which every parameter stands elsewhere than in `net.parameters()`."""
    return [
        {"params": [net[2].bias, net[0].weight]},
        {"params": [net[1].bias, net[2].weight]},
        {"params": [net[0].bias, net[1].weight]},
    ]


@every_optimizer
def test_a_resumed_run_equals_the_uninterrupted_one(make: Make, tmp_path: Path) -> None:
    whole = three_layers()
    optimizer = make(whole.parameters())
    train(whole, optimizer, steps=3)
    torch.save((whole.state_dict(), fl.optimizer_state(optimizer, whole)), tmp_path / "run.pt")
    train(whole, optimizer, steps=3)
    resumed = three_layers()
    again = make(in_another_order(resumed))
    weights, state = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.load_state_dict(weights)
    fl.load_optimizer_state(again, resumed, state)
    train(resumed, again, steps=3)
    assert moved(resumed, bits(whole)) == set()


def test_layers_of_one_shape_do_not_swap_their_states(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    train(net, optimizer)
    swapped = torch.optim.SGD(reversed(list(net.parameters())), lr=0.01, momentum=0.9)
    fl.load_optimizer_state(swapped, net, fl.optimizer_state(optimizer, net))
    for parameter in net.parameters():
        one, other = (o.state[parameter]["momentum_buffer"] for o in (optimizer, swapped))
        assert torch.equal(one, other)


def test_hyperparameters_come_along_by_name(net: nn.Sequential) -> None:
    optimizer = torch.optim.AdamW(fl.param_groups(net, lr=0.1, layer_decay=0.5))
    again = torch.optim.AdamW(list(reversed(fl.param_groups(net, lr=9.0, layer_decay=0.5))))
    for group in optimizer.param_groups:
        group["lr"] /= 10
    fl.load_optimizer_state(again, net, fl.optimizer_state(optimizer, net))
    assert [g["lr"] for g in again.param_groups] == [
        g["lr"] for g in reversed(optimizer.param_groups)
    ]
    assert again.param_groups[0]["rule"]["lr"] == 0.1


def test_the_optimizers_own_hyperparameters_can_be_kept(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, optimizer)
    again = torch.optim.Adam(net.parameters(), lr=0.5)
    state = fl.optimizer_state(optimizer, net)
    fl.load_optimizer_state(again, net, state, hyperparameters="own")
    assert again.param_groups[0]["lr"] == 0.5
    assert again.state[net[0].weight]["step"] == 1


def test_what_was_saved_is_a_copy(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    state = fl.optimizer_state(optimizer, net)
    before = copy.deepcopy(state)
    train(net, optimizer)
    again = torch.optim.Adam(net.parameters())
    fl.load_optimizer_state(again, net, state)
    train(net, again)
    for name, saved in state["parameters"].items():
        for key, value in saved["state"].items():
            assert torch.equal(value, before["parameters"][name]["state"][key])


def test_step_is_placed_as_torch_would_place_it(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.to(torch.float64).parameters())
    train(net.float(), optimizer)
    state = fl.optimizer_state(optimizer, net)
    net.to(torch.bfloat16)
    again = torch.optim.Adam(net.parameters())
    fl.load_optimizer_state(again, net, state)
    found = again.state[net[0].weight]
    assert found["step"].dtype == torch.float32
    assert found["exp_avg"].dtype == torch.bfloat16


def test_a_compiled_model_reads_the_plain_models_state(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    state = fl.optimizer_state(optimizer, net)
    again = torch.optim.Adam(net.parameters())
    compiled: Any = torch.compile(net, backend="eager")
    fl.load_optimizer_state(again, compiled, state)
    assert again.state[net[0].weight]["step"] == 1


def test_a_tied_parameter_is_found_under_its_other_name() -> None:
    def tied(*, order: str) -> nn.ModuleDict:
        layers = {name: nn.Linear(3, 3, bias=False) for name in order}
        layers["a"].weight = layers["b"].weight
        return nn.ModuleDict(layers)

    net, other = tied(order="ab"), tied(order="ba")
    optimizer = torch.optim.Adam(net.parameters())
    net["a"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    again = torch.optim.Adam(other.parameters())
    fl.load_optimizer_state(again, other, fl.optimizer_state(optimizer, net))
    assert again.state[other["a"].weight]["step"] == 1


def test_another_models_state_stays_where_it_is(net: nn.Sequential) -> None:
    other = three_layers()
    optimizer = torch.optim.Adam([*net.parameters(), *other.parameters()])
    train(net, optimizer)
    train(other, optimizer)
    state = fl.optimizer_state(optimizer, net)
    assert len(state["parameters"]) == 6
    train(net, optimizer)
    train(other, optimizer)
    before = optimizer.state[other[0].weight]["exp_avg"]
    fl.load_optimizer_state(optimizer, net, state)
    assert optimizer.state[other[0].weight]["exp_avg"] is before
    assert optimizer.state[net[0].weight]["step"] == 1


@every_optimizer
def test_what_was_not_saved_begins_fresh_if_told_so(make: Make, net: nn.Sequential) -> None:
    optimizer = make([*net[1].parameters(), *net[2].parameters()])
    train(net, optimizer, steps=2)
    again = make(net.parameters())
    state = fl.optimizer_state(optimizer, net)
    fl.load_optimizer_state(again, net, state, missing="fresh")
    assert again.state.get(net[0].weight, {}).get("step", 0) == 0
    before = bits(net)
    train(net, again)
    assert moved(net, before) == set(dict(net.named_parameters()))


def test_what_was_saved_of_others_is_left_out_with_fresh(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    again = torch.optim.Adam(net[2].parameters())
    state = fl.optimizer_state(optimizer, net)
    fl.load_optimizer_state(again, net, state, missing="fresh")
    assert set(again.state) == set(net[2].parameters())


def test_a_state_goes_on_through_a_sync(net: nn.Sequential) -> None:
    switch(net[0], on=False)
    optimizer = torch.optim.AdamW(fl.param_groups(net, lr=0.01, layer_decay=0.5))
    train(net, optimizer)
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    train(net, optimizer)
    resumed = copy.deepcopy(net)
    again = torch.optim.AdamW(fl.param_groups(resumed, lr=0.01, layer_decay=0.5))
    fl.load_optimizer_state(again, resumed, fl.optimizer_state(optimizer, net))
    train(net, optimizer)
    train(resumed, again)
    assert moved(resumed, bits(net)) == set()


def refusal(optimizer: Any, net: Any, state: Any, message: str, **options: Any) -> None:
    before = snapshot(optimizer)
    with pytest.raises(fl.ConfigError, match=message):
        fl.load_optimizer_state(optimizer, net, state, **options)
    assert snapshot(optimizer) == before


def test_what_was_not_saved_is_named(net: nn.Sequential) -> None:
    state = fl.optimizer_state(torch.optim.Adam(net[2].parameters()), net)
    message = (
        r"knows nothing of 0\.weight, 0\.bias, 1\.weight and 1 more of Sequential\..*"
        r'missing="fresh"'
    )
    refusal(torch.optim.Adam(net.parameters()), net, state, message)


def test_what_was_saved_and_is_not_held_is_named(net: nn.Sequential) -> None:
    state = fl.optimizer_state(torch.optim.Adam(net.parameters()), net)
    switch(net[0], on=False)
    message = r"holds 0\.weight, 0\.bias, which this optimizer does not\. Thaw it and fl\.sync"
    refusal(torch.optim.Adam([*net[1].parameters(), *net[2].parameters()]), net, state, message)


def test_another_shape_is_named(net: nn.Sequential) -> None:
    state = fl.optimizer_state(torch.optim.Adam(net.parameters()), net)
    wider = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 5), nn.Linear(5, 3))
    message = r"1\.weight was saved with the shape \(3, 3\), but has \(5, 3\)"
    refusal(torch.optim.Adam(wider.parameters()), wider, state, message)


def test_a_damaged_state_is_named(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    state = fl.optimizer_state(optimizer, net)
    state["parameters"]["1.bias"]["state"]["exp_avg"] = torch.ones(7)
    refusal(optimizer, net, state, r"'exp_avg' given for 1\.bias has the shape \(7,\)")


def test_another_optimizer_is_refused(net: nn.Sequential) -> None:
    state = fl.optimizer_state(torch.optim.Adam(net.parameters()), net)
    optimizer = torch.optim.RMSprop(net.parameters())
    refusal(optimizer, net, state, "saved from Adam, but this optimizer is RMSprop")


@pytest.mark.parametrize("wrong", [{"state": {}, "param_groups": []}, None])
def test_torchs_own_state_dict_is_refused(net: nn.Sequential, wrong: Any) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    refusal(optimizer, net, wrong, "no optimizer state by name .* optimizer.load_state_dict")


def test_groups_that_cannot_hold_what_was_saved_are_refused(net: nn.Sequential) -> None:
    groups = [{"params": list(net[index].parameters()), "lr": index + 1} for index in range(3)]
    state = fl.optimizer_state(torch.optim.Adam(groups), net)
    message = r"0\.weight and 1\.weight stand in one group, but were saved with lr 1 and 2"
    refusal(torch.optim.Adam(net.parameters()), net, state, message)


@pytest.mark.parametrize("option", ["missing", "hyperparameters"])
def test_an_unknown_choice_is_refused(net: nn.Sequential, option: str) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    state = fl.optimizer_state(optimizer, net)
    refusal(optimizer, net, state, f"{option} is 'maybe'; it is '", **{option: "maybe"})


def test_lbfgs_has_no_state_by_name(net: nn.Sequential) -> None:
    with pytest.raises(fl.ConfigError, match="LBFGS keeps one flat history"):
        fl.optimizer_state(torch.optim.LBFGS(net.parameters()), net)


def test_another_models_optimizer_has_nothing_to_save(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(three_layers().parameters())
    with pytest.raises(fl.ConfigError, match="the optimizer holds no parameter of this Sequential"):
        fl.optimizer_state(optimizer, net)
