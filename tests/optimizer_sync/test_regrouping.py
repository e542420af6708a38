"""Groups by name: an optimizer that is made anew loads states by position as the old one would."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import frostline as fl
from frostline.optimizer_sync import group_names, regroup
from phased_net import net


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model.eval()(torch.ones(4, 8)).square().sum().backward()
    optimizer.step()


def grown(model: nn.Module, optimizer: Optimizer) -> None:
    """The head first, then the neck at another rate, in a group of its own."""
    fl.train_only(model, "head")
    fl.sync(optimizer, model)
    step(model, optimizer)
    fl.thaw(model, "neck")
    fl.sync(optimizer, model, lr=0.003)
    step(model, optimizer)


def by_parameters(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def by_named_groups(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(fl.param_groups(model, lr=0.01, weight_decay=0.1))


@pytest.mark.parametrize("made", [by_parameters, by_named_groups])
def test_a_state_by_position_loads_into_groups_made_again(
    made: Callable[[nn.Module], Optimizer],
) -> None:
    model, other = net(), net()
    before = made(model)
    grown(model, before)
    after = made(other)
    regroup(after, other, group_names(before, model))
    after.load_state_dict(copy.deepcopy(before.state_dict()))  # a file would share nothing
    other.load_state_dict(model.state_dict())
    fl.train_only(other, "head | neck")
    for one, optimizer in ((model, before), (other, after)):
        step(one, optimizer)
    assert group_names(after, other) == group_names(before, model)
    assert [g["lr"] for g in after.param_groups] == [g["lr"] for g in before.param_groups]
    assert fl.fingerprint(other) == fl.fingerprint(model)


def test_functions_of_a_schedule_go_to_the_groups_that_joined() -> None:
    model, other = net(), net()
    before, after = by_parameters(model), by_parameters(other)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        for optimizer in (before, after)
    ]
    fl.train_only(model, "head")
    fl.sync(before, model, schedulers=schedules[:1])
    step(model, before)
    schedules[0].step()
    fl.thaw(model, "neck")
    fl.sync(before, model, schedulers=schedules[:1], lr=0.003)
    regroup(after, other, group_names(before, model), schedulers=schedules[1:])
    after.load_state_dict(before.state_dict())
    schedules[1].load_state_dict(schedules[0].state_dict())
    for optimizer, schedule in zip((before, after), schedules, strict=True):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in after.param_groups] == [0.0025, 0.00075]
    assert schedules[1].get_last_lr() == schedules[0].get_last_lr()


def test_names_that_the_model_does_not_have_leave_the_optimizer_as_it_was() -> None:
    model = net()
    optimizer = by_parameters(model)
    groups = list(optimizer.param_groups)
    with pytest.raises(fl.ConfigError, match=r"holds neck\.9\.bias, which this Net does not have"):
        regroup(optimizer, model, [["head.weight", "neck.9.bias"]])
    with pytest.raises(fl.ConfigError, match="Adam does not take the saved groups: some param"):
        regroup(optimizer, model, [["head.weight"], ["head.weight"]])
    assert optimizer.param_groups == groups


def test_an_optimizer_over_more_than_the_model_has_no_names_for_it() -> None:
    model = net()
    optimizer = torch.optim.Adam([*model.parameters(), nn.Parameter(torch.ones(2, 3))])
    with pytest.raises(
        fl.ConfigError, match=r"holds 1 tensors that are no parameters of this Net, .* \(2, 3\)"
    ):
        group_names(optimizer, model)
