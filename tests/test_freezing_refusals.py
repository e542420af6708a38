"""Freezes that cannot hold are refused, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from blocks_net import Net, state, wanting
from quantised_weights import quantise


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.mark.parametrize("selector", ["all", "body | head", "~none"])
def test_leaving_nothing_trainable_is_refused(net: Net, selector: str) -> None:
    before = state(net)
    with pytest.raises(fl.FreezeError, match=r"nothing trainable in Net\. Add the new head first"):
        fl.freeze(net, selector)
    assert state(net) == before


def test_a_second_freeze_that_leaves_nothing_is_refused(net: Net) -> None:
    fl.freeze(net, "body")
    with pytest.raises(fl.FreezeError, match="would leave nothing trainable"):
        fl.freeze(net, "head")
    assert wanting(net) == {"head.weight", "head.bias"}


def test_leaving_nothing_is_allowed_on_request(net: Net) -> None:
    fl.freeze(net, "all", leaving="nothing")
    assert not wanting(net)
    assert not net.train().training


def test_an_unknown_leaving_is_refused(net: Net) -> None:
    with pytest.raises(fl.FreezeError, match=r"leaving='all' is unknown\. Use leaving='something'"):
        fl.freeze(net, "body", leaving="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [fl.freeze, fl.train_only])
def test_an_unknown_norm_policy_is_refused(net: Net, call: Any) -> None:
    with pytest.raises(fl.FreezeError, match=r"norm='held' is no norm policy\. Use norm='hold' or"):
        call(net, "body", norm="held")
    assert len(wanting(net)) == 10


def test_an_unknown_norm_policy_is_refused_by_the_context(net: Net) -> None:
    with (
        pytest.raises(fl.FreezeError, match="is no norm policy"),
        fl.frozen(
            net,
            "body",
            norm="held",  # type: ignore[arg-type]
        ),
    ):
        pass


@pytest.mark.parametrize(
    ("call", "verb"), [(fl.freeze, "freeze"), (fl.thaw, "thaw"), (fl.train_only, "train")]
)
def test_terms_without_a_common_parameter_are_refused(net: Net, call: Any, verb: str) -> None:
    with pytest.raises(fl.FreezeError, match=f"'body & head' leaves nothing to {verb} in Net"):
        call(net, "body & head")


@pytest.mark.parametrize("selector", ["none", "0"])
def test_train_only_refuses_what_cannot_be_trained(selector: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    with pytest.raises(fl.FreezeError, match=f"'{selector}' holds no parameter that could be tr"):
        fl.train_only(net, selector)


@pytest.mark.parametrize("wrapped_first", [nn.Identity, torch.compile])
@pytest.mark.parametrize("call", [fl.freeze, fl.thaw, fl.train_only])
def test_a_data_parallel_model_is_refused(net: Net, call: Any, wrapped_first: Any) -> None:
    wrapped = nn.DataParallel(net)
    model = torch.compile(wrapped, backend="eager") if wrapped_first is torch.compile else wrapped
    with pytest.raises(fl.FreezeError, match=r"wrapped in DataParallel.*Freeze and thaw first"):
        call(model, "body")
    assert len(wanting(net)) == 10


class SharedDropout(nn.Module):
    """One dropout, in the body and in the head."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), dropout)
        self.head = nn.Sequential(dropout, nn.Linear(4, 2))


@pytest.mark.parametrize("inside", [nn.Dropout(), nn.Sequential(nn.ReLU(), nn.Dropout())])
def test_a_dropout_shared_with_the_trainable_part_is_refused(inside: nn.Module) -> None:
    net = SharedDropout(inside)
    before = state(net)
    message = r"one Dropout serves the frozen part as body\.1.* and the trainable part as head\.0"
    with pytest.raises(fl.FreezeError, match=message):
        fl.freeze(net, "body")
    assert state(net) == before


@pytest.mark.parametrize("by_handle", [True, False])
def test_a_dropout_shared_with_what_stays_frozen_is_refused_by_a_thaw(by_handle: bool) -> None:
    dropout = nn.Dropout()
    parts = {name: nn.Sequential(nn.Linear(2, 2), dropout) for name in "ab"}
    net = nn.ModuleDict({**parts, "head": nn.Linear(2, 2)})
    handle = fl.freeze(net, "a | b")
    before = state(net)
    with pytest.raises(fl.FreezeError, match=r"frozen part as a\.1 and the trainable part as b\.1"):
        handle.thaw("b") if by_handle else fl.thaw(net, "b")
    assert state(net) == before
    fl.train_only(net, "a | b")
    assert net.train()["b"][1].training


def test_a_dropout_shared_within_the_frozen_part_is_fine() -> None:
    dropout = nn.Dropout()
    net = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(2, 2), dropout, dropout), "head": nn.Linear(2, 2)}
    )
    fl.freeze(net, "body")
    assert not net.train()["body"][1].training


def test_a_model_on_the_meta_device_is_refused_and_left_as_it_was() -> None:
    with torch.device("meta"):
        net = Net()
    before = state(net)
    with pytest.raises(fl.FrostlineError, match=r"body\.0\.0\.weight has no data to hash"):
        fl.freeze(net, "body")
    assert state(net) == before


def test_torchscript_is_refused_with_what_to_do() -> None:
    class Scripted(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    net = nn.Sequential(Scripted(), nn.Linear(2, 2))
    with pytest.raises(fl.FreezeError, match=r"0 is TorchScript, .* script it afterwards"):
        fl.freeze(net, "0")
    fl.freeze(net, "1").verify()


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_rewrites_itself_is_refused_and_left_as_it_was(kind: Any) -> None:
    net: Any = nn.Sequential(kind(4, 2, max_norm=0.5), nn.Linear(2, 2))
    with pytest.raises(fl.FreezeError, match=r"with max_norm=0\.5: .*\('0'\)\.max_norm = None"):
        fl.freeze(net, "0")
    assert net[0].weight.requires_grad
    net[0].max_norm = None
    frozen = fl.freeze(net, "0")
    net.eval()(torch.tensor([[1]]))
    frozen.verify()


@pytest.mark.parametrize("call", [fl.thaw, fl.train_only])
@pytest.mark.parametrize("kind", ["opaque", "cutting"])
def test_a_quantised_weight_that_gets_no_gradient_is_not_thawed(call: Any, kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    quantise(model[0], kind)  # type: ignore[arg-type]
    message = (
        r"0\.weight is of class Int8Weight, a kind of tensor that takes no gradient: it would want "
        r"one and never move\. Dequantise it first, as "
        r"layer\.weight = torch\.nn\.Parameter\(layer\.weight\.dequantize\(\)\), or leave it out: "
        r"'\(0\) & ~0\.weight'"
    )
    with pytest.raises(fl.FreezeError, match=message):
        call(model, "0")
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    fl.freeze(model, "0")
    fl.thaw(model, "(0) & ~0.weight")
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


def test_a_tensor_of_a_kind_of_its_own_that_trains_is_thawed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    quantise(model[0], "trainable")  # type: ignore[arg-type]
    fl.thaw(model, "0")
    model(torch.randn(3, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_two_parameters_in_one_memory_are_frozen_together_or_not_at_all() -> None:
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 2))
    net[1].weight = nn.Parameter(net[0].weight.data)  # which looks tied, and is not
    with pytest.raises(fl.FreezeError, match=r"0\.weight, which is frozen, and 1\.weight, which"):
        fl.freeze(net, "0")
    assert all(parameter.requires_grad for parameter in net.parameters())
    fl.freeze(net, "0 | 1").verify()
    with pytest.raises(fl.FreezeError, match="are two parameters in one memory"):
        fl.thaw(net, "1")
    net[1].weight = nn.Parameter(net[0].weight.data.clone())
    fl.freeze(net, "0").verify()
