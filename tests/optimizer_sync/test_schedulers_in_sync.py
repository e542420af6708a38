"""A group that `fl.sync` adds follows every scheduler as if it had been there from the start."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sync_world import snapshot, switch, three_layers
from torch import nn
from torch.optim import lr_scheduler as s

import frostline as fl

BODY, HEAD = 0.02, 0.1
Make = Callable[[Any], Any]


def _one_cycle(optimizer: Any, **options: Any) -> Any:
    peaks = [group["lr"] for group in optimizer.param_groups]
    return s.OneCycleLR(optimizer, max_lr=peaks, total_steps=60, **options)


def _warm_up_then_cosine(optimizer: Any) -> Any:
    warm_up = s.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    cosine = s.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-3)
    return s.SequentialLR(optimizer, [warm_up, cosine], milestones=[5])


def _chain(optimizer: Any) -> Any:
    warm_up = s.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return s.ChainedScheduler([warm_up, s.ExponentialLR(optimizer, 0.95)], optimizer=optimizer)


def _three_in_a_row(optimizer: Any) -> Any:
    parts = [
        s.ConstantLR(optimizer, factor=0.5, total_iters=3),
        s.CosineAnnealingWarmRestarts(optimizer, T_0=7, eta_min=2e-3),
        s.StepLR(optimizer, step_size=3, gamma=0.5),
    ]
    return s.SequentialLR(optimizer, parts, milestones=[4, 20])


def _goes_on(optimizer: Any) -> Any:
    parts = [s.ExponentialLR(optimizer, 0.9), s.MultiplicativeLR(optimizer, lambda _: 0.97)]
    return s.SequentialLR(optimizer, parts, milestones=[6])


SCHEDULERS: dict[str, Make] = {
    "lambda": lambda o: s.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "lambda-from-zero": lambda o: s.LambdaLR(o, lambda epoch: min(1.0, epoch / 10)),
    "multiplicative": lambda o: s.MultiplicativeLR(o, lambda _: 0.95),
    "step": lambda o: s.StepLR(o, step_size=4, gamma=0.5),
    "multi-step": lambda o: s.MultiStepLR(o, milestones=[3, 9, 20], gamma=0.3),
    "constant": lambda o: s.ConstantLR(o, factor=0.25, total_iters=9),
    "linear": lambda o: s.LinearLR(o, start_factor=0.1, total_iters=9),
    "exponential": lambda o: s.ExponentialLR(o, gamma=0.9),
    "polynomial": lambda o: s.PolynomialLR(o, total_iters=40, power=2.0),
    "polynomial-to-zero": lambda o: s.PolynomialLR(o, total_iters=10),
    "cosine": lambda o: s.CosineAnnealingLR(o, T_max=10),
    "cosine-eta-min": lambda o: s.CosineAnnealingLR(o, T_max=25, eta_min=5e-3),
    "restarts": lambda o: s.CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2),
    "restarts-eta-min": lambda o: s.CosineAnnealingWarmRestarts(o, T_0=5, eta_min=5e-3),
    "one-cycle": _one_cycle,
    "one-cycle-linear": lambda o: _one_cycle(o, anneal_strategy="linear", three_phase=True),
    "plateau": lambda o: s.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "plateau-floor": lambda o: s.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=4e-3),
    "plateau-high-floor": lambda o: s.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=0.03),
    "sequential": _warm_up_then_cosine,
    "sequential-three": _three_in_a_row,
    "sequential-goes-on": _goes_on,
    "chained": _chain,
}
every_scheduler = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
every_thaw = pytest.mark.parametrize("steps_before", [0, 4, 13])


def made(net: nn.Module, *, momentum: float = 0.9) -> torch.optim.Optimizer:
    groups = fl.param_groups(net, lr=HEAD, weight_decay=0.0, lr_mult={"0": BODY / HEAD})
    return torch.optim.SGD(sorted(groups, key=lambda group: -group["lr"]), momentum=momentum)


def frozen_below() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A net whose first layer is frozen, and the optimizer over the rest."""
    net = three_layers()
    optimizer = made(net)
    switch(net[0], on=False)
    del optimizer.param_groups[1]
    return net, optimizer


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    """The learning rates and momenta of the groups after each step."""
    seen = []
    for _ in range(steps):
        optimizer.step()
        if isinstance(scheduler, s.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
        seen.append([float(g[key]) for g in optimizer.param_groups for key in ("lr", "momentum")])
    return seen


@every_thaw
@every_scheduler
def test_a_new_group_is_where_it_would_be_had_it_been_there(make: Make, steps_before: int) -> None:
    whole = made(three_layers())
    reference = make(whole)
    advance(whole, reference, steps_before)
    net, optimizer = frozen_below()
    scheduler = make(optimizer)
    advance(optimizer, scheduler, steps_before)
    switch(net[0], on=True)
    assert fl.sync(optimizer, net, schedulers=[scheduler]).groups_added == 1
    now = [[g["lr"] for g in o.param_groups] for o in (optimizer, whole)]
    assert now[0] == pytest.approx(now[1], rel=1e-6, abs=1e-18)
    assert scheduler._last_lr == pytest.approx(now[1], rel=1e-6, abs=1e-18)
    expected = advance(whole, reference, 20)
    for found, right in zip(advance(optimizer, scheduler, 20), expected, strict=True):
        assert found == pytest.approx(right, rel=1e-6, abs=1e-12)


@every_thaw
@every_scheduler
def test_the_old_group_goes_on_bit_for_bit(make: Make, steps_before: int) -> None:
    net, optimizer = frozen_below()
    _, alone = frozen_below()
    scheduler, reference = make(optimizer), make(alone)
    advance(optimizer, scheduler, steps_before)
    advance(alone, reference, steps_before)
    switch(net[0], on=True)
    fl.sync(optimizer, net, schedulers=[scheduler])
    expected = advance(alone, reference, 20)
    assert [row[:2] for row in advance(optimizer, scheduler, 20)] == expected


@every_scheduler
def test_the_scheduler_can_be_saved_and_resumed_afterwards(make: Make) -> None:
    net, optimizer = frozen_below()
    scheduler = make(optimizer)
    advance(optimizer, scheduler, 4)
    switch(net[0], on=True)
    fl.sync(optimizer, net, schedulers=[scheduler])
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    again = made(three_layers())
    resumed = make(again)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert advance(again, resumed, 20) == advance(optimizer, scheduler, 20)


def test_tensor_rates_are_followed_too() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.Adam(
        [p for p in net.parameters() if p.requires_grad], lr=torch.tensor(0.1)
    )
    scheduler = s.CosineAnnealingLR(optimizer, T_max=10)
    advance_rates(optimizer, scheduler, 3)
    switch(net[0], on=True)
    fl.sync(optimizer, net, schedulers=[scheduler], lr=0.02)
    advance_rates(optimizer, scheduler, 3)
    old, new = (group["lr"] for group in optimizer.param_groups)
    assert isinstance(new, torch.Tensor)
    assert float(new) == pytest.approx(float(old) / 5, rel=1e-5)


def advance_rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        scheduler.step()


def test_one_peak_for_all_groups_holds_for_the_joiner_too() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(
        fl.param_groups(net, lr=0.1, weight_decay=0.3, layer_decay=0.5), momentum=0.9
    )
    scheduler = s.OneCycleLR(optimizer, max_lr=0.7, total_steps=10)
    switch(net[0], on=True)
    fl.sync(optimizer, net, schedulers=[scheduler])
    assert {group["max_lr"] for group in optimizer.param_groups} == {0.7}


def test_joining_an_existing_group_needs_no_scheduler() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    scheduler = s.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, cycle_momentum=False)
    advance_rates(optimizer, scheduler, 2)
    switch(net[0], on=True)
    assert fl.sync(optimizer, net).groups_added == 0


def test_a_warm_up_and_a_plateau_are_followed_together() -> None:
    whole = made(three_layers())
    net, optimizer = frozen_below()
    pairs = []
    for one in (whole, optimizer):
        warm_up, plateau = s.LinearLR(one, 0.1, total_iters=4), s.ReduceLROnPlateau(one, patience=1)
        for _ in range(7):
            one.step()
            warm_up.step()
            plateau.step(1.0)
        pairs.append((warm_up, plateau))
    switch(net[0], on=True)
    fl.sync(optimizer, net, schedulers=pairs[1])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(
        [g["lr"] for g in whole.param_groups], rel=1e-6
    )


def refusal(make: Callable[[Any], list[Any]], message: str, *, steps: int = 0) -> None:
    net, optimizer = frozen_below()
    schedulers = make(optimizer)
    for _ in range(steps):
        optimizer.step()
        schedulers[0].step(*[1.0] * isinstance(schedulers[0], s.ReduceLROnPlateau))
    switch(net[0], on=True)
    before = snapshot(optimizer)
    states = [repr(scheduler.state_dict()) for scheduler in schedulers]
    with pytest.raises(fl.ConfigError, match=message):
        fl.sync(optimizer, net, schedulers=schedulers)
    assert snapshot(optimizer) == before
    assert [repr(scheduler.state_dict()) for scheduler in schedulers] == states


def test_an_unknown_scheduler_is_refused() -> None:
    refusal(
        lambda o: [s.CyclicLR(o, base_lr=0.01, max_lr=0.1, cycle_momentum=False)],
        "CyclicLR cannot take in a new group.*thaw and sync before the schedule begins",
    )


def test_functions_that_differ_between_groups_are_refused() -> None:
    net = three_layers()
    optimizer = torch.optim.SGD(
        [{"params": list(net[1].parameters())}, {"params": list(net[2].parameters())}], lr=0.1
    )
    scheduler = s.LambdaLR(optimizer, [lambda _: 0.5, lambda _: 0.25])
    with pytest.raises(fl.ConfigError, match="LambdaLR has different functions for its groups"):
        fl.sync(optimizer, net, schedulers=[scheduler], lr=0.3)


def test_floors_that_differ_between_groups_are_refused() -> None:
    net = three_layers()
    optimizer = torch.optim.SGD(
        [{"params": list(net[1].parameters())}, {"params": list(net[2].parameters())}], lr=0.1
    )
    scheduler = s.ReduceLROnPlateau(optimizer, min_lr=[0.1, 0.2])
    with pytest.raises(fl.ConfigError, match="ReduceLROnPlateau has different min_lr"):
        fl.sync(optimizer, net, schedulers=[scheduler], lr=0.3)


def test_a_bent_chain_is_refused() -> None:
    def chain(optimizer: Any) -> list[Any]:
        parts = [s.LinearLR(optimizer), s.CosineAnnealingLR(optimizer, 9, eta_min=0.01)]
        return [s.ChainedScheduler(parts, optimizer=optimizer)]

    refusal(chain, r"CosineAnnealingLR with eta_min=0\.01 acts together with other schedulers")


def test_a_plateau_with_a_floor_beside_another_is_refused() -> None:
    refusal(
        lambda o: [s.LinearLR(o), s.ReduceLROnPlateau(o, min_lr=0.01)],
        r"ReduceLROnPlateau with min_lr=0\.01 acts together",
    )


def test_a_factor_on_top_of_a_bent_schedule_is_refused() -> None:
    def row(optimizer: Any) -> list[Any]:
        cosine = s.CosineAnnealingLR(optimizer, 9, eta_min=0.01)
        factor = s.MultiplicativeLR(optimizer, lambda _: 0.9)
        return [s.SequentialLR(optimizer, [cosine, factor], milestones=[3])]

    refusal(row, r"CosineAnnealingLR with eta_min=0\.01 acts together", steps=5)


def test_a_group_that_does_not_move_shows_no_schedule() -> None:
    refusal(
        lambda o: [s.CosineAnnealingLR(o, T_max=9, eta_min=HEAD)],
        "stands at 0.1, the lowest rate of its schedule, and does not show",
        steps=3,
    )


def test_a_plateau_at_its_floor_does_not_show_where_a_higher_rate_would_be() -> None:
    net, optimizer = frozen_below()
    plateau = s.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=0.04)
    advance(optimizer, plateau, 6)
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match=r"stands at 0\.04, the lowest rate of its schedule"):
        fl.sync(optimizer, net, schedulers=[plateau], lr=1.0)


def test_a_scheduler_that_was_not_handed_over_is_missed() -> None:
    net, optimizer = frozen_below()
    s.StepLR(optimizer, 3)
    switch(net[0], on=True)
    before = snapshot(optimizer)
    with pytest.raises(fl.ConfigError, match=r"Hand it over: fl\.sync\(.*schedulers=\[\.\.\.\]\)"):
        fl.sync(optimizer, net)
    assert snapshot(optimizer) == before
    for group in optimizer.param_groups:
        group.pop("initial_lr")
    assert fl.sync(optimizer, net).groups_added == 1


def test_another_optimizers_scheduler_is_refused() -> None:
    other = made(three_layers())
    net, optimizer = frozen_below()
    with pytest.raises(fl.ConfigError, match="the StepLR handed over moves another optimizer"):
        fl.sync(optimizer, net, schedulers=[s.StepLR(other, 3)])


def test_what_is_no_scheduler_is_refused() -> None:
    net, optimizer = frozen_below()
    wrong: Any = [object()]
    with pytest.raises(fl.ConfigError, match=r"no scheduler of torch\.optim\.lr_scheduler: object"):
        fl.sync(optimizer, net, schedulers=wrong)


def test_groups_added_past_a_scheduler_are_noticed() -> None:
    net, optimizer = frozen_below()
    scheduler = s.StepLR(optimizer, 3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "param_names": ["x"]})
    switch(net[0], on=True)
    with pytest.raises(fl.ConfigError, match="StepLR knows 1 of the optimizer's 2 groups"):
        fl.sync(optimizer, net, schedulers=[scheduler])


def reduced_by_hand() -> tuple[nn.Sequential, torch.optim.Optimizer, Any]:
    """A plain optimizer over what is not frozen, whose rate a plateau halved twice, from 0.1."""
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    plateau = s.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    advance(optimizer, plateau, 3)
    switch(net[0], on=True)
    return net, optimizer, plateau


def test_where_a_plateau_stands_is_not_guessed() -> None:
    net, optimizer, plateau = reduced_by_hand()
    message = r"ReduceLROnPlateau does not keep the rate that it began with.*group\['base_lr'\] ="
    with pytest.raises(fl.ConfigError, match=message):
        fl.sync(optimizer, net, lr=0.02, schedulers=[plateau])
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("way", ["base_lr", "param_groups"])
def test_a_joiner_of_a_reduced_plateau_gets_the_reduced_rate(way: str) -> None:
    if way == "base_lr":
        net, optimizer, plateau = reduced_by_hand()
        optimizer.param_groups[0]["base_lr"] = 0.1
    else:
        net, optimizer = frozen_below()
        plateau = s.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        advance(optimizer, plateau, 3)
        switch(net[0], on=True)
    lr = 0.02 if way == "base_lr" else 0.1  # a fifth of it for this layer by its rule
    fl.sync(optimizer, net, lr=lr, schedulers=[plateau])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.025, 0.005])


def test_without_a_rate_joiners_share_where_the_plateau_stands() -> None:
    net, optimizer, plateau = reduced_by_hand()
    assert fl.sync(optimizer, net, schedulers=[plateau]).groups_added == 0


def test_a_plateau_that_cannot_have_reduced_yet_takes_any_rate() -> None:
    net = three_layers()
    switch(net[0], on=False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    plateau = s.ReduceLROnPlateau(optimizer, patience=3)
    advance(optimizer, plateau, 3)
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.02, schedulers=[plateau])
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.02]
