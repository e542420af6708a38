"""A second cut of the same model is not followed again, unless something has changed."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import frostline as fl
from frostline.cutting import tracing


def net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    fl.train_only(model, "4")
    return model


def follows(model: nn.Module, example: torch.Tensor) -> int:
    """How often cutting the model follows its forward."""
    with mock.patch.object(tracing, "_export", wraps=tracing._export) as export:
        fl.cut(model, example)
    return export.call_count


class Switched(nn.Sequential):
    """Adds in training what its own `train` says, as a network that folds branches does."""

    more = 1.0

    def train(self, mode: bool = True) -> Switched:
        self.more = 1.0 if mode else 0.0
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](x)) + self.more


class Hooked(nn.Dropout):
    """Scales what it drops of, in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 2 if self.training else x)


class Moody(nn.Sequential):
    """Puts itself into a mode, and asks itself for it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.training = bool(self.training)
        return self[1](self[0](x)) + float(self.training)


@pytest.mark.parametrize(
    ("kind", "last", "times"),
    [
        (nn.Sequential, None, 1),
        (nn.Sequential, nn.Dropout(0.5), 1),
        (nn.Sequential, nn.Dropout(0.5, inplace=True), 1),
        (nn.Sequential, nn.AlphaDropout(0.5), 1),
        (nn.Sequential, nn.RReLU(), 2),
        (nn.Sequential, nn.BatchNorm1d(2), 2),
        (nn.Sequential, Hooked(0.5), 2),
        (Switched, None, 2),
        (Moody, None, 2),
    ],
)
def test_a_forward_is_followed_once_where_both_modes_read_the_same_or_only_dropout_differs(
    kind: type[nn.Sequential], last: nn.Module | None, times: int
) -> None:
    more = [copy.deepcopy(last)] if last is not None else []
    model, example = kind(nn.Linear(4, 8), nn.Linear(8, 2), *more), torch.randn(3, 4)
    fl.freeze(model, "0")
    assert follows(model, example) == times
    made = fl.cut(model, example)
    for training in (True, False):
        model.train(training)
        torch.manual_seed(0)
        expected = model(example)
        torch.manual_seed(0)
        assert torch.equal(made.suffix(*made.prefix(example)), expected)


def test_a_second_cut_of_an_unchanged_model_follows_nothing() -> None:
    model, example = net(), torch.randn(3, 4)
    assert follows(model, example) == 1
    assert follows(model, torch.randn(5, 4)) == 0


def test_a_trained_head_changes_nothing_of_the_line() -> None:
    model, example = net(), torch.randn(3, 4)
    before = fl.cut(model, example)
    with torch.no_grad():
        model[4].weight.add_(1.0)
    assert follows(model, example) == 0
    again = fl.cut(model, example)
    assert again.key == before.key
    assert torch.equal(again.suffix.eval()(*again.prefix(example)), model.eval()(example))


def test_a_new_head_of_the_same_form_is_trained_behind_the_line_that_is_there() -> None:
    model, example = net(), torch.randn(3, 4)
    before = fl.cut(model, example)
    model[4] = nn.Linear(8, 2)
    assert follows(model, example) == 0
    again = fl.cut(model, example)
    assert again.key == before.key
    assert torch.equal(again.suffix.eval()(*again.prefix(example)), model.eval()(example))
    model.train()
    again.suffix(*again.prefix(example)).sum().backward()
    assert model[4].weight.grad is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda model: fl.thaw(model, "2"),
        lambda model: model[0].weight.data.add_(1.0),
        lambda model: model.__setitem__(4, nn.Linear(8, 3)),
        lambda model: model.__setitem__(4, nn.Linear(8, 2, bias=False)),
        lambda model: setattr(model[3], "p", 0.25),
        lambda model: model[2].register_forward_hook(lambda *_: None),
        lambda model: model.append(nn.ReLU()),
        lambda model: model[4].weight.requires_grad_(False),
    ],
    ids=[
        "thawed",
        "frozen weight",
        "wider head",
        "head without bias",
        "attribute",
        "hook",
        "new layer",
        "frozen by hand",
    ],
)
def test_a_changed_model_is_followed_again(change: Callable[[nn.Module], object]) -> None:
    model, example = net(), torch.randn(3, 4)
    fl.cut(model, example)
    change(model)
    assert follows(model, example) == 1


def test_what_only_evaluation_reads_is_noticed_when_it_has_changed() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head, self.temperature = nn.Linear(4, 8), nn.Linear(8, 2), 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.below(x))
            return y if self.training else y / self.temperature

    model, example = Tempered(), torch.randn(3, 4)
    fl.freeze(model, "below")
    fl.cut(model, example)
    model.temperature = 10.0
    again = fl.cut(model, example)
    assert torch.equal(again.suffix.eval()(*again.prefix(example)), model.eval()(example))


def test_many_cuts_keep_no_more_of_their_tracing_than_one() -> None:
    def worlds() -> int:
        gc.collect()
        return sum(type(o) in (ShapeEnv, FakeTensorMode) for o in gc.get_objects())

    kept = [fl.cut(net(), torch.randn(3, 4))]
    after_one = worlds()
    kept += [fl.cut(net(), torch.randn(3, 4)) for _ in range(2)]
    assert worlds() <= after_one


def test_what_is_kept_of_a_cut_does_not_keep_the_model() -> None:
    model = net()
    fl.cut(model, torch.randn(3, 4))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_tensor_that_is_a_plain_attribute_belongs_to_the_key_of_the_next_cut() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 2)
            self.scale = torch.full((16,), 2.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head((self.body(x) * self.scale).tanh())
            return out

    model, example = Scaled(), torch.randn(3, 4)
    fl.freeze(model, "body")
    before = fl.cut(model, example)
    model.scale = torch.full((16,), 3.0)
    again = fl.cut(model, example)
    again.check_current()
    assert again.key["tensors"] != before.key["tensors"]


def test_what_was_drawn_under_autocast_is_not_taken_without() -> None:
    model, example = net(), torch.randn(3, 4)
    plain = fl.cut(model, example).frontier.values[0].dtype
    with torch.autocast("cpu", torch.bfloat16):
        cast = fl.cut(model, example).frontier.values[0].dtype
    assert (plain, cast) == (torch.float32, torch.bfloat16)
