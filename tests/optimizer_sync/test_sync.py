"""`fl.sync`: who joins, who leaves, which group; by identity, and all or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sync_world import bits, held, moved, snapshot, switch, three_layers, train, trainable
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import frostline as fl


@pytest.fixture
def net() -> nn.Sequential:
    return three_layers()


def test_the_optimizer_holds_just_what_is_trainable(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[1], on=False)
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    assert held(optimizer, net) == [{"0.weight", "0.bias", "2.weight", "2.bias"}]


def test_it_follows_freeze_and_thaw(net: nn.Sequential) -> None:
    fl.train_only(net, "2")
    optimizer = torch.optim.AdamW(fl.param_groups(net, lr=0.1))
    fl.thaw(net, "1")
    assert fl.sync(optimizer, net).joined == ("1.weight", "1.bias")
    fl.freeze(net, "2")
    assert fl.sync(optimizer, net).left == ("2.weight", "2.bias")


def test_thawed_zero_bias_joins_the_optimizer(net: nn.Sequential) -> None:
    for layer in net:
        nn.init.zeros_(layer.bias)
    net[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    net[0].bias.requires_grad_(True)
    assert fl.sync(optimizer, net).joined == ("0.bias",)
    before = bits(net)
    train(net, optimizer)
    assert "0.bias" in moved(net, before)


def test_a_frozen_zero_bias_leaves_and_its_equal_stays(net: nn.Sequential) -> None:
    for layer in net:
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net[1].bias.requires_grad_(False)
    fl.sync(optimizer, net)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in trainable(net)]


def test_who_leaves_loses_gradient_and_state(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    state = optimizer.state[net[0].weight]
    synced = fl.sync(optimizer, net)
    assert net[0].weight.grad is None
    assert net[0].weight not in optimizer.state
    assert synced.states["0.weight"] is state


def test_a_stale_gradient_of_a_frozen_outsider_is_cleared(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net[2].parameters())
    net[0].weight.grad = torch.ones(3, 3)
    switch(net[0], on=False)
    switch(net[1], on=False)
    fl.sync(optimizer, net)
    assert net[0].weight.grad is None


def test_a_second_sync_changes_nothing(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    before = snapshot(optimizer)
    synced = fl.sync(optimizer, net)
    assert (synced.joined, synced.left) == ((), ())
    assert snapshot(optimizer) == before


def test_a_tied_weight_joins_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    net["a"].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    net["a"].weight.requires_grad_(True)
    assert fl.sync(optimizer, net).joined == ("a.weight",)
    assert len(optimizer.param_groups[0]["params"]) == 3


def test_both_halves_of_a_weight_normed_tensor_join(net: nn.Sequential) -> None:
    weight_norm(net[0])
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    switch(net[0], on=True)
    assert set(fl.sync(optimizer, net).joined) == {
        "0.bias",
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }


def test_a_compiled_model_is_synced_under_its_own_names(net: nn.Sequential) -> None:
    compiled: Any = torch.compile(net, backend="eager")
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    switch(net[0], on=True)
    assert fl.sync(optimizer, compiled).joined == ("0.weight", "0.bias")


def test_another_models_parameters_are_left_alone(net: nn.Sequential) -> None:
    other = three_layers()
    optimizer = torch.optim.Adam(
        [{"params": list(net.parameters())}, {"params": list(other.parameters())}]
    )
    train(net, optimizer)
    train(other, optimizer)
    switch(other[0], on=False)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    assert len(held(optimizer, other)[1]) == 6
    assert other[0].weight in optimizer.state
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    assert held(optimizer, net)[0] == set(dict(net.named_parameters()))
    assert len(optimizer.param_groups) == 2


def test_groups_keep_their_identity_and_empty_ones_their_index(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD([{"params": list(layer.parameters())} for layer in net], lr=0.1)
    groups = list(optimizer.param_groups)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    assert all(a is b for a, b in zip(groups, optimizer.param_groups, strict=True))
    assert held(optimizer, net)[0] == set()


def test_an_empty_group_is_used_again(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(
        [{"params": list(net[0].parameters()), "lr": 0.5}, {"params": list(net[1].parameters())}],
        lr=0.1,
    )
    switch(net[2], on=False)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[2], on=True)
    fl.sync(optimizer, net, lr=0.5)
    assert held(optimizer, net) == [{"2.weight", "2.bias"}, {"1.weight", "1.bias"}]


def test_names_stand_beside_their_parameters(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.3)
    by_name = dict(net.named_parameters())
    for group in optimizer.param_groups:
        pairs = zip(group["param_names"], group["params"], strict=True)
        assert all(by_name[name] is parameter for name, parameter in pairs)
    assert optimizer.param_groups[1]["param_names"] == ["0.weight", "0.bias"]


def test_an_optimizer_without_names_gets_none(net: nn.Sequential) -> None:
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    switch(net[0], on=True)
    fl.sync(optimizer, net, lr=0.3)
    assert not any("param_names" in group for group in optimizer.param_groups)


def test_a_kept_state_is_copied(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    left = fl.sync(optimizer, net)
    before = left.states["0.weight"]["exp_avg"].clone()
    switch(net[0], on=True)
    fl.sync(optimizer, net, kept=left)
    train(net, optimizer)
    assert torch.equal(left.states["0.weight"]["exp_avg"], before)


def test_without_kept_a_joiner_begins_fresh(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, steps=3)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[0], on=True)
    fl.sync(optimizer, net)
    train(net, optimizer)
    assert optimizer.state[net[0].weight]["step"] == 1
    assert optimizer.state[net[1].weight]["step"] == 4


def test_states_of_two_syncs_can_be_merged(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    first = fl.sync(optimizer, net)
    switch(net[1], on=False)
    second = fl.sync(optimizer, net)
    switch(net, on=True)
    fl.sync(optimizer, net, kept={**first.states, **second.states})
    assert all(optimizer.state[parameter]["step"] == 1 for parameter in net.parameters())


def test_states_that_left_can_be_saved_and_given_back(net: nn.Sequential, tmp_path: Any) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    torch.save(dict(fl.sync(optimizer, net).states), tmp_path / "left.pt")
    switch(net[0], on=True)
    fl.sync(optimizer, net, kept=torch.load(tmp_path / "left.pt", weights_only=True))
    assert optimizer.state[net[0].weight]["step"] == 1


def test_a_leftover_state_of_a_joiner_is_forgotten(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    del optimizer.param_groups[0]["params"][0]
    fl.sync(optimizer, net)
    assert net[0].weight not in optimizer.state


def test_fused_sgd_evens_out_who_joins_before_and_after_the_first_step(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[0], on=True)
    fl.sync(optimizer, net, kept={"0.weight": {"momentum_buffer": torch.ones(3, 3)}})
    before = bits(net)
    train(net, optimizer)
    assert moved(net, before) == set(dict(net.named_parameters()))


def test_it_says_in_a_line_what_it_did(net: nn.Sequential) -> None:
    switch(net[0], on=False)
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    assert str(fl.sync(optimizer, net)) == "nothing joined, nothing left"
    switch(net, on=True)
    net[2].bias.requires_grad_(False)
    told = str(fl.sync(optimizer, net, lr=0.7))
    assert told == (
        "2 parameters (0.weight, 0.bias) joined, 1 parameter (2.bias) left; 1 group added"
    )
    switch(net[2], on=True)
    switch(net[0], on=False)
    switch(net[1], on=False)
    told = str(fl.sync(optimizer, net))
    assert told.endswith("4 parameters (1.weight, 1.bias, 0.weight, ...) left")


def test_modules_that_something_else_unfroze_are_named_as_held(net: nn.Sequential) -> None:
    fl.freeze(net, "0 | 1")
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    switch(net[0], on=True)
    synced = fl.sync(optimizer, net)
    assert (synced.joined, synced.held) == (("0.weight", "0.bias"), ("0",))
    assert str(synced).endswith("; held in eval though trainable: 0 (fl.thaw lets them go)")
    fl.thaw(net, "1")
    assert fl.sync(optimizer, net).held == ()


def refusal(optimizer: Any, model: Any, message: str, **options: Any) -> None:
    before = snapshot(optimizer)
    gradients = [parameter.grad for parameter in model.parameters()]
    with pytest.raises(fl.FrostlineError, match=message):
        fl.sync(optimizer, model, **options)
    assert snapshot(optimizer) == before
    assert all(a is p.grad for a, p in zip(gradients, model.parameters(), strict=True))


def test_nothing_trainable_is_refused(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train(net, optimizer)
    switch(net, on=False)
    refusal(optimizer, net, r"nothing in Sequential is trainable.*Thaw something before the sync")


def test_a_copy_of_the_model_is_refused(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    refusal(optimizer, three_layers(), "holds no parameter of this Sequential. Pass the very model")


def test_what_is_no_torch_optimizer_is_refused(net: nn.Sequential) -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        @property
        def param_groups(self) -> Any:  # type: ignore[override]
            return self.inner.param_groups

    optimizer: Any = Wrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    for wrong in (optimizer, object()):
        with pytest.raises(fl.ConfigError, match=r"no torch\.optim\.Optimizer with groups of its"):
            fl.sync(wrong, net)


def test_a_sharded_optimizer_is_refused(net: nn.Sequential) -> None:
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        pass

    optimizer = ZeroRedundancyOptimizer(net.parameters(), lr=0.1)
    refusal(optimizer, net, "deals its parameters out to the processes")


def test_names_that_are_not_parallel_are_refused(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    del optimizer.param_groups[0]["params"][0]
    refusal(optimizer, net, "group 0 of the optimizer has 6 param_names for 5 params")


def test_a_kept_state_of_another_shape_is_refused(net: nn.Sequential) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    left = fl.sync(optimizer, net)
    switch(net[0], on=True)
    switch(net[2], on=False)
    swapped = {"0.weight": left.states["0.bias"], "0.bias": left.states["0.weight"]}
    refusal(optimizer, net, r"'exp_avg' given for 0\.weight has the shape \(3,\)", kept=swapped)


@pytest.mark.parametrize("options", [{}, {"lr": 0.5}])
def test_a_kept_state_of_another_optimizer_is_refused(net: nn.Sequential, options: Any) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    switch(net[0], on=False)
    fl.sync(optimizer, net)
    switch(net[0], on=True)
    kept = {"0.weight": {"momentum_buffer": torch.ones(3, 3)}}
    message = r"given for 0\.weight holds momentum_buffer, but this Adam keeps step, exp_avg"
    refusal(optimizer, net, message, kept=kept, **options)


@pytest.mark.parametrize("kept", ["left.pt", {"0.weight": 3}])
def test_what_is_no_kept_state_is_refused(net: nn.Sequential, kept: Any) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    refusal(optimizer, net, "kept is what fl.sync returned, or a mapping", kept=kept)


def test_a_group_that_torch_refuses_leaves_nothing_behind(net: nn.Sequential) -> None:
    class Picky(torch.optim.SGD):
        def add_param_group(self, param_group: dict[str, Any]) -> None:
            if param_group.get("lr") == 0.5:
                raise RuntimeError("not this one")
            super().add_param_group(param_group)

    optimizer = Picky(net[2].parameters(), lr=0.1)
    train(net, optimizer)
    switch(net[2], on=False)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="not this one"):
        fl.sync(optimizer, net, lr=0.25, lr_mult={"0": 1, "1": 2})
    assert snapshot(optimizer) == before
    assert net[2].weight.grad is not None


def test_fused_sgd_steps_again_after_a_step_with_part_of_it_frozen() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
    frozen = fl.freeze(net, "0")
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    frozen.thaw()
    assert not fl.sync(optimizer, net).joined  # it was in the optimizer all along
    before = net[0].weight.detach().clone()
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_a_scheduler_outside_a_list_is_refused() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(fl.ConfigError, match=r"schedulers is a StepLR\. Give a list"):
        fl.sync(optimizer, net, schedulers=scheduler)
