"""What belongs to no single parameter is saved and loaded too, and no bit of what does is lost."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from sync_world import bits, moved, three_layers, timm_optim, train
from torch import nn

import frostline as fl

timm = timm_optim()


class Counting(torch.optim.SGD):
    """SGD whose rate falls with counts that hang on no parameter, in both places for them."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.total = 0

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's
        self.total += 1
        self.state["k"] = self.state.get("k", 0) + 1
        factor = 1 / (self.total + self.state["k"])
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"] * factor)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.total = state_dict["total"]


class Wide(torch.optim.Optimizer):
    """Keeps a float32 sum of half-precision gradients, and says how in a text."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                gradient = parameter.grad.float() / 3
                state["sum"] = state.get("sum", torch.zeros(())) + gradient
                state["how"] = "exact"
                parameter.data.sub_(group["lr"] * state["sum"].to(parameter.dtype))


def stored(state: Any) -> Any:
    """What comes back from a file that is read safely."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def lookahead(params: Any) -> torch.optim.Optimizer:
    return timm.Lookahead(torch.optim.AdamW(params, lr=0.01), k=2)


@pytest.mark.parametrize("make", [Counting, lookahead])
def test_what_hangs_on_no_parameter_comes_along(make: Any) -> None:
    whole, resumed = three_layers(), three_layers()
    optimizer = make(whole.parameters())
    train(whole, optimizer, steps=3)
    resumed.load_state_dict(whole.state_dict())
    again = make(resumed.parameters())
    fl.load_optimizer_state(again, resumed, stored(fl.optimizer_state(optimizer, whole)))
    train(whole, optimizer, steps=3)
    train(resumed, again, steps=3)
    assert moved(resumed, bits(whole)) == set()


def test_a_wrapped_optimizer_that_leaves_forgets_its_slow_weights() -> None:
    net = three_layers()
    base = torch.optim.AdamW(net.parameters(), lr=0.01)
    optimizer = timm.Lookahead(base, k=1)
    train(net, optimizer)
    net[0].requires_grad_(False)
    left = fl.sync(optimizer, net)
    assert "lookahead_slow_buff" in left.states["0.weight"]
    assert net[0].weight not in base.state
    net[0].requires_grad_(True)
    fl.sync(optimizer, net, kept=left)
    assert "lookahead_slow_buff" in base.state[net[0].weight]


def test_what_is_kept_by_position_is_refused() -> None:
    class ByPosition(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "inner": {"state": {0: torch.ones(3)}}}

    net = three_layers()
    optimizer = ByPosition(net.parameters(), lr=0.1)
    with pytest.raises(fl.ConfigError, match=r"ByPosition keeps 'inner' by the positions of its"):
        fl.optimizer_state(optimizer, net)


def test_a_state_dict_of_another_form_is_refused() -> None:
    class OwnForm(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {"base": super().state_dict()}

    net = three_layers()
    optimizer = OwnForm(net.parameters(), lr=0.1)
    with pytest.raises(fl.ConfigError, match=r"OwnForm saves itself in a form of its own \(base\)"):
        fl.optimizer_state(optimizer, net)


def test_states_that_lie_elsewhere_are_refused() -> None:
    class Elsewhere(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "state": {0: {"momentum": 1}}}

    net = three_layers()
    optimizer = Elsewhere(net.parameters(), lr=0.1)
    with pytest.raises(fl.ConfigError, match=r"keeps its parameters' states in another object"):
        fl.optimizer_state(optimizer, net)


def test_what_the_optimizers_own_loading_refuses_leaves_everything_as_it_was() -> None:
    class Strict(Counting):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            raise ValueError("made with other options")

    net = three_layers()
    optimizer = Strict(net.parameters())
    train(net, optimizer)
    saved = fl.optimizer_state(optimizer, net)
    train(net, optimizer)
    before = dict(vars(optimizer))
    with pytest.raises(fl.ConfigError, match=r"Strict\.load_state_dict refuses .* other options"):
        fl.load_optimizer_state(optimizer, net, saved)
    assert vars(optimizer) == before
    assert optimizer.total == 2


def test_a_state_of_the_format_before_is_read() -> None:
    net = three_layers()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    saved: Any = dict(fl.optimizer_state(optimizer, net))
    del saved["shared"], saved["further"]
    saved["format"] = "frostline optimizer state 1"
    for one in saved["parameters"].values():
        del one["dtype"]
    again = torch.optim.Adam(net.parameters())
    fl.load_optimizer_state(again, net, saved)
    assert again.state[net[0].weight]["step"] == 1


@pytest.mark.parametrize("way", ["sync", "load"])
def test_wider_state_of_half_precision_parameters_keeps_its_bits(way: str) -> None:
    net = three_layers().to(torch.bfloat16)
    optimizer = Wide(net.parameters())
    net(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    before = optimizer.state[net[0].weight]["sum"].clone()
    if way == "sync":
        net[0].requires_grad_(False)
        left = fl.sync(optimizer, net)
        net[0].requires_grad_(True)
        fl.sync(optimizer, net, kept=left)
    else:
        fl.load_optimizer_state(optimizer, net, stored(fl.optimizer_state(optimizer, net)))
    state = optimizer.state[net[0].weight]
    assert (state["sum"].dtype, state["how"]) == (torch.float32, "exact")
    assert torch.equal(state["sum"], before)


def test_narrower_state_comes_back_as_it_left() -> None:
    net = three_layers()
    optimizer = timm.AdafactorBigVision(net.parameters(), lr=0.01)
    train(net, optimizer)
    net[0].requires_grad_(False)
    left = fl.sync(optimizer, net)
    net[0].requires_grad_(True)
    fl.sync(optimizer, net, kept=left)
    assert optimizer.state[net[0].weight]["exp_avg"].dtype == torch.bfloat16
    train(net, optimizer)


def test_state_in_the_parameters_dtype_follows_it() -> None:
    net = three_layers()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    net[0].requires_grad_(False)
    left = fl.sync(optimizer, net)
    net[0].requires_grad_(True)
    net[0].double()
    fl.sync(optimizer, net, kept=left)
    state = optimizer.state[net[0].weight]
    assert (state["exp_avg"].dtype, state["step"].dtype) == (torch.float64, torch.float32)


def test_a_kept_state_goes_to_its_parameter_in_lists_too() -> None:
    net = three_layers()
    optimizer = Wide(net.parameters())
    net[0].requires_grad_(False)
    fl.sync(optimizer, net)
    net[0].requires_grad_(True)
    kept = {"0.weight": {"Q": [torch.ones(3, 3), (torch.ones(3), 1)]}}
    fl.sync(optimizer, net, kept=kept)
    found = optimizer.state[net[0].weight]["Q"]
    assert found[0] is not kept["0.weight"]["Q"][0]
    assert isinstance(found[1], tuple)


def test_hyperparameters_that_are_rows_of_numbers_are_compared() -> None:
    net = three_layers()
    groups: Any = [{"params": list(layer.parameters())} for layer in net]
    for group in groups:
        group["betas"] = (torch.tensor([0.9, 0.5]), 0.99)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    again = torch.optim.SGD(net.parameters(), lr=0.1)
    fl.load_optimizer_state(again, net, fl.optimizer_state(optimizer, net))
    assert torch.equal(again.param_groups[0]["betas"][0], torch.tensor([0.9, 0.5]))


def test_a_resized_parameter_is_not_saved_with_its_old_state() -> None:
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.tensor([0])).sum().backward()
    optimizer.step()
    net[0].weight.data = torch.zeros(6, 3)
    message = r"0\.weight has the shape \(6, 3\), but .* 'exp_avg' of it with \(4, 3\).*fl\.sync"
    with pytest.raises(fl.ConfigError, match=message):
        fl.optimizer_state(optimizer, net)
