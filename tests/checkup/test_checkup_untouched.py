"""After a checkup everything is as it was: bits, gradients, modes, hooks, random numbers."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from checkup_zoo import ZOO, Net, pictures
from torch import Tensor, nn

import frostline as fl


def state(model: nn.Module) -> dict[str, Any]:
    """All that a pass could change, in values that can be compared."""
    return {
        "bits": {n: t.detach().numpy().tobytes() for n, t in model.state_dict().items()},
        "objects": {n: id(t) for n, t in model.state_dict(keep_vars=True).items()},
        "versions": {n: t._version for n, t in model.named_parameters()},
        "gradients": {n: (id(p.grad), p.grad) for n, p in model.named_parameters()},
        "switches": {n: p.requires_grad for n, p in model.named_parameters()},
        "attributes": {p: dict(m.__dict__) for p, m in model.named_modules()},
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    }


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def check_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for what in ("bits", "objects", "versions", "switches", "hooks"):
        assert before[what] == after[what], what
    assert all(after["gradients"][n][0] == key for n, (key, _) in before["gradients"].items())
    for path, own in before["attributes"].items():
        now = after["attributes"][path]
        assert own.keys() == now.keys(), path
        assert all(own[key] is now[key] for key in own), path


class Busy(Net):
    """A forward that changes whatever it can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.log: list[float] = []
        self.loose = torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(float(x.sum()))
        self.loose += 1
        self.cache = x
        self.seen = self.seen + 1
        self.head.weight.data.mul_(1.01)
        random.random()
        np.random.rand()
        return super().forward(x.mul_(2))


@pytest.mark.parametrize("make", [Net, Busy])
def test_everything_is_as_it_was(make: type[Net]) -> None:
    net = make()
    net.train()
    net.backbone[0].eval()
    fl.freeze(net, "backbone.1")
    net.head.weight.grad = torch.ones_like(net.head.weight)
    net.register_forward_hook(lambda *_: None)
    optimizer = torch.optim.Adam(net.parameters())
    example = pictures()
    kept, before = example.clone(), state(net)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = drawn()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    fl.doctor(net, example, optimizer=optimizer, freeze="backbone.0")
    assert drawn() == expected
    check_same(before, state(net))
    assert torch.equal(example, kept)
    assert not optimizer.state
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    if isinstance(net, Busy):
        assert (net.calls, net.log) == (0, [])
        assert torch.equal(net.loose, torch.ones(2))


@pytest.mark.parametrize("name", ["forward_that_breaks_in_eval", "gradient_of_a_root_of_zero"])
def test_a_pass_that_fails_leaves_nothing_behind(name: str) -> None:
    given = ZOO[name]().arguments
    before = state(given["model"])
    fl.doctor(**given)
    check_same(before, state(given["model"]))


def test_an_optimizer_that_steps_within_the_backward_does_not() -> None:
    net = Net()
    steps = []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: steps.append(p))
    fl.doctor(net, pictures())
    assert not steps
    net(pictures()).sum().backward()
    assert len(steps) == 10, "the hooks are there again"


def test_a_graph_made_before_can_still_go_backwards() -> None:
    net = Net().eval()
    loss = net(pictures()).sum()
    fl.doctor(net, pictures())
    loss.backward()


def test_a_checkup_under_no_grad_sees_the_same() -> None:
    net = Net()
    fl.freeze(net, "backbone")
    with torch.no_grad():
        inside = fl.doctor(net, pictures())
    with torch.inference_mode():
        within = fl.doctor(net, pictures())
    assert inside == within == fl.doctor(net, pictures())


def test_warnings_of_the_model_are_kept_from_the_caller() -> None:
    class Warns(Net):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("look at me", stacklevel=1)
            return super().forward(x)

    net = Warns()
    fl.freeze(net, "backbone")
    assert fl.doctor(net, pictures()).codes == ()


def test_held_modules_stay_held() -> None:
    net = Net()
    frozen = fl.freeze(net, "backbone")
    fl.doctor(net, pictures())
    net.train()
    assert not net.backbone[0][1].training
    frozen.verify()


def test_a_compiled_model_is_not_compiled_for_it() -> None:
    net = Net()
    fl.freeze(net, "backbone")
    compiled = torch.compile(net, backend=_refusing)
    assert fl.doctor(compiled, pictures()).codes == ()
    net.compile(backend=_refusing)
    assert fl.doctor(net, pictures()).codes == ()
    assert net._compiled_call_impl is not None


def _refusing(*_: object) -> None:
    raise AssertionError("the doctor compiled the model")
