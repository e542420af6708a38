"""A model whose structure has changed since it was cut is refused, and the change named."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import frostline as fl
from frostline.cutting import Cut, cut
from frostline.fingerprints.parts import same_bits

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
AGAIN = r"[Cc]ut (it )?again: fl\.cut\(model, example\)"


class Scaled(nn.Module):
    """A layer with what Python alone knows of: a switch, a table, a function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)
        self._enabled = True
        self.scaling = {"default": 2.0}
        self.act = torch.relu
        self.shift = torch.ones(12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.inner(x)) + self.shift
        return y * self.scaling["default"] if self._enabled else y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 12))
        self.scaled, self.norm, self.drop = Scaled(), nn.BatchNorm1d(12), nn.Dropout(0.5)
        self.tail: nn.Module = nn.Identity()
        self.head = nn.Linear(12, 2)
        self.unused = 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.tail(self.drop(self.norm(self.scaled(self.body(x))))))
        return y


def made_of(model: Net) -> Cut:
    fl.freeze(model, "body")
    return cut(model, X)


def other_forward(self: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, 2 * self.weight, self.bias)


CHANGES: dict[str, tuple[Callable[[Net], Any], str]] = {
    "another class": (lambda m: setattr(m, "head", nn.Bilinear(1, 1, 2)), "'head' is a Bilinear"),
    "a block around": (
        lambda m: setattr(m, "head", nn.Sequential(m.head)),
        "'head' is a Sequential, and was a Linear",
    ),
    "other shape": (
        lambda m: setattr(m, "head", nn.Linear(12, 3)),
        "head.weight is 3 x 12 float32 on cpu, and was 2 x 12 float32 on cpu",
    ),
    "no bias": (lambda m: setattr(m, "head", nn.Linear(12, 2, bias=False)), "it has no head.bias"),
    "identity replaced": (lambda m: setattr(m, "tail", nn.Tanh()), "'tail' is a Tanh"),
    "gone": (lambda m: delattr(m, "head"), "'head' is gone"),
    "one more": (lambda m: m.scaled.add_module("more", nn.Tanh()), "'scaled' has other modules in"),
    "weight norm": (
        lambda m: parametrizations.weight_norm(m.head),
        "'head' is a ParametrizedLinear, and was a Linear",
    ),
    "forward hook": (
        lambda m: m.head.register_forward_hook(lambda *_: None),
        "'head' has .*lambda.* for forward hooks, and had none",
    ),
    "forward pre hook": (
        lambda m: m.drop.register_forward_pre_hook(lambda *_: None),
        "'drop' has .*lambda.* for forward pre hooks",
    ),
    "backward hook": (
        lambda m: m.head.register_full_backward_hook(lambda *_: None),
        "'head' has .*lambda.* for backward hooks",
    ),
    "instance forward": (
        lambda m: setattr(m.head, "forward", other_forward.__get__(m.head)),
        "'head' has another forward",
    ),
    "adapter switched off": (
        lambda m: setattr(m.scaled, "_enabled", False),
        "'scaled' has _enabled = False, and had True",
    ),
    "adapter rescaled": (
        lambda m: m.scaled.scaling.update(default=3.0),
        "'scaled' has scaling = {default: 3.0}, and had {default: 2.0}",
    ),
    "adapter rescaled by a tensor": (
        lambda m: m.scaled.scaling.update(default=torch.ones(12)),
        "'scaled' has scaling = {default: a tensor}, and had {default: 2.0}",
    ),
    "other function": (lambda m: setattr(m.scaled, "act", torch.tanh), "'scaled' has act = "),
    "other attribute tensor": (
        lambda m: setattr(m.scaled, "shift", torch.zeros(12)),
        "'scaled' has another shift",
    ),
    "other rate": (lambda m: setattr(m.drop, "p", 0.1), "'drop' has p = 0.1, and had 0.5"),
    "half a part's mode": (
        lambda m: m.norm.eval(),
        r"'norm' is in evaluation mode, .*fl\.freeze holds a part in evaluation",
    ),
    "frozen and held": (lambda m: fl.freeze(m, "norm"), "'norm' is in evaluation mode"),
    "other precision": (
        lambda m: m.double(),
        "scaled.inner.weight is 12 x 12 float64 on cpu, and was 12 x 12 float32",
    ),
    "other device": (lambda m: m.to("meta"), "12 x 12 float32 on meta"),
    "below replaced": (lambda m: setattr(m, "body", nn.Sequential(nn.Linear(6, 12))), "no body.2."),
    "below parametrized": (lambda m: parametrizations.weight_norm(m.body[0]), "no body.0.weight"),
}


@pytest.fixture(scope="module")
def cut_net() -> Cut:
    torch.manual_seed(0)
    return made_of(Net())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_change_of_structure_is_named(
    cut_net: Cut, change: str, again: Callable[[Cut], Cut]
) -> None:
    # Each copy is cut as the original is; the original is never changed.
    made = again(cut_net)
    model = made.suffix.model
    assert isinstance(model, Net)
    model.train()
    features = made.prefix(X)
    made.suffix(*features)
    what, message = CHANGES[change]
    what(model)
    with pytest.raises(fl.CutError, match=f"(?s){message}.*{AGAIN}"):
        made.suffix(*features)


def test_a_class_whose_forward_was_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_of(Net())
    made.suffix.model.train()
    features = made.prefix(X)
    made.suffix(*features)
    monkeypatch.setattr(Scaled, "forward", lambda *inputs: inputs[1])
    with pytest.raises(fl.CutError, match=f"'scaled' has another forward.*{AGAIN}"):
        made.suffix(*features)


def test_what_the_forward_does_not_read_may_change() -> None:
    model = Net()
    made = made_of(model)
    features = made.prefix(X)
    model.eval()
    expected = made.suffix(*features)
    model.unused = 2
    model.note = "of the user's"
    model.scaled.scaling = {"default": 2.0}
    model.head.weight.register_hook(lambda grad: grad)
    fl.freeze(model, "head")
    assert same_bits(made.suffix(*features), expected)
    model.train()
    made.suffix(*features)


def test_what_each_forward_sets_anew_is_no_change() -> None:
    class Counted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.last = 0, {"call": 0}

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last["call"] = self.last["call"] + self.calls
            return super().forward(x)

    model = Counted()
    made = made_of(model)
    model.eval()
    for rows in (X, X[:3]):
        assert same_bits(made.suffix(*made.prefix(rows)), model(rows))


def test_a_leaned_model_is_still_the_one_that_was_cut() -> None:
    model = Net()
    made = made_of(model)
    model.eval()
    features = made.prefix(X)
    expected = made.suffix(*features)
    with fl.lean(model):
        assert same_bits(made.suffix(*made.prefix(X)), expected)
        with fl.lean(made.suffix):
            assert same_bits(made.suffix(*features), expected)


def test_tied_tensors_must_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.down.weight = self.up.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(self.up(self.below(x)))
            return y

    model = Tied()
    fl.freeze(model, "below")
    made = cut(model, X)
    copied = copy.deepcopy(made)
    assert same_bits(copied.suffix(*copied.prefix(X)), model(X))
    model.down.weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(fl.CutError, match=f"weight and .*weight are not one tensor.*{AGAIN}"):
        made.suffix(*made.prefix(X))


# What lies below


def test_a_part_below_the_line_that_is_thawed_is_named() -> None:
    model = Net()
    made = made_of(model)
    features = made.prefix(X)
    made.suffix(*features)
    fl.thaw(model, "body.2")
    message = (
        r"body\.2\.weight, body\.2\.bias are trainable now and lie below the frost line of this cut"
        f".*{AGAIN}"
    )
    with pytest.raises(fl.CutError, match=message):
        made.suffix(*features)
    with pytest.raises(fl.CutError, match=message):
        made.prefix(X)
    fl.freeze(model, "body.2")
    made.suffix(*features)
    model.body[0].weight.requires_grad_(True)
    with pytest.raises(fl.CutError, match=r"body\.0\.weight is trainable now and lies below"):
        made.suffix(*features)


def test_a_part_below_a_named_line_that_is_thawed_is_named() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 12), nn.ReLU())
            self.upper, self.head = nn.Linear(12, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.upper(self.body(x)))
            return y

    model = Deep()
    fl.freeze(model, "body | upper")
    made = cut(model, X, at="body")
    features = made.prefix(X)
    fl.thaw(model, "upper")
    made.suffix(*features)
    fl.thaw(model, "body")
    with pytest.raises(fl.CutError, match=r"body\.0\.weight, body\.0\.bias are trainable now"):
        made.suffix(*features)


def test_a_compiled_suffix_looks_its_model_over_as_well() -> None:
    model = Net().eval()
    made = made_of(model)
    features = made.prefix(X)
    compiled = torch.compile(made.suffix, backend="eager")
    assert torch.equal(compiled(*features), model(X))
    model.head = nn.Linear(12, 2)
    assert torch.equal(compiled(*features), model(X))
    model.body[2].weight.requires_grad_(True)
    with pytest.raises(fl.CutError, match=r"body\.2\.weight is trainable now and lies below"):
        compiled(*features)
    model.body[2].weight.requires_grad_(False)
    model.tail = nn.Tanh()
    with pytest.raises(fl.CutError, match="'tail' is a Tanh, and was a Identity"):
        compiled(*features)


def test_the_prefix_of_a_changed_model_is_refused_and_a_new_head_does_not_matter_to_it() -> None:
    model = Net()
    made = made_of(model)
    expected = made.prefix(X)
    model.head = nn.Linear(12, 7)
    model.norm.eval()
    assert same_bits(made.prefix(X)[0], expected[0])
    model.eval()
    assert same_bits(made.prefix(X)[0], expected[0])
    model.body[1] = nn.Tanh()
    with pytest.raises(fl.CutError, match=f"'body.1' is a Tanh, and was a ReLU.*{AGAIN}"):
        made.prefix(X)
    with pytest.raises(fl.CutError, match=r"'body\.1' is a Tanh"):
        _ = made.prefix.graph
