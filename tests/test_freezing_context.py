"""`with fl.frozen(...)`: everything is as it was, however the block ends."""

from __future__ import annotations

import pytest
import torch

import frostline as fl
from blocks_net import Net, batch, state, wanting, with_mixed_modes


@pytest.fixture
def net() -> Net:
    return Net()


def test_the_context_restores_everything_exactly(net: Net) -> None:
    net(batch()).sum().backward()
    before = state(with_mixed_modes(net))
    with fl.frozen(net, "body"):
        net.train()
    after = state(net)
    assert after["modes"] == before["modes"]
    assert after["own"] == before["own"]
    assert after["wanting"] == before["wanting"]
    assert all(after["grads"][name] is grad for name, grad in before["grads"].items())


@pytest.mark.parametrize("training", [True, False])
def test_the_context_restores_what_the_block_did_to_other_parts(net: Net, training: bool) -> None:
    before = state(net.train(training))
    with fl.frozen(net, "body"):
        net.train(not training)
        fl.freeze(net, "head", leaving="nothing")
        fl.thaw(net, "body.0")
    assert state(net) == before


def test_gradients_that_the_block_made_of_other_parts_stay(net: Net) -> None:
    with fl.frozen(net, "body"):
        net(batch()).sum().backward()
    assert net.head.weight.grad is not None


def test_the_context_freezes_inside(net: Net) -> None:
    with fl.frozen(net, "body") as frozen:
        net.train()(batch()).sum().backward()
        assert all(parameter.grad is None for parameter in net.body.parameters())
        frozen.verify()


def test_the_context_gives_gradients_back_to_a_model_cast_inside_it(net: Net) -> None:
    net(batch()).sum().backward()
    with fl.frozen(net, "body"):
        net.double()
    grad = net.body[0][0].weight.grad
    assert grad is not None
    assert grad.dtype == torch.float64


def test_the_context_restores_after_an_exception(net: Net) -> None:
    before = state(with_mixed_modes(net))
    with pytest.raises(ZeroDivisionError), fl.frozen(net, "body"):
        _ = 1 / 0
    assert state(net) == before


def test_nested_contexts_unwind_one_by_one(net: Net) -> None:
    outermost = state(net)
    with fl.frozen(net, "body"):
        outer = state(net)
        with fl.frozen(net, "body.0 | head"):
            assert not wanting(net)
        assert state(net) == outer
    assert state(net) == outermost


def test_a_context_within_a_freeze_leaves_the_freeze(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    before = state(net)
    with fl.frozen(net, "body.0"):
        pass
    assert state(net) == before
    assert frozen.verify().tensors == 14


def test_a_context_may_freeze_the_whole_model(net: Net) -> None:
    with fl.frozen(net, "all"):
        assert not wanting(net)
        assert not any(module.training for module in net.train().modules())
    assert len(wanting(net)) == 10


def test_a_context_leaves_a_parameter_frozen_that_was(net: Net) -> None:
    net.head.bias.requires_grad_(False)
    with fl.frozen(net, "head.bias | body"):
        pass
    assert "head.bias" not in wanting(net)
