"""Halves read the model's tensors at each call: those of a copy, and those put in their place."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

import frostline as fl
from frostline.cutting import Cut, Suffix, cut
from frostline.cutting.structures import flatten_output
from frostline.fingerprints.parts import same_bits

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 12), nn.Linear(12, 2))
    fl.freeze(model, "0 | 2")
    return model


def trained(suffix: nn.Module, features: tuple[Tensor, ...], steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD([p for p in suffix.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(steps):
        loss = suffix(*features).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_copied_suffix_trains_itself_and_leaves_the_original_alone() -> None:
    model = net()
    made = cut(model, X)
    features = made.prefix(X)
    copied = copy.deepcopy(made.suffix)
    before = copy.deepcopy(model.state_dict())
    losses = trained(copied, features)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 3
    assert all(same_bits(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert losses == trained(made.suffix, features)


def test_a_suffix_copied_beside_its_model_belongs_to_the_copied_model() -> None:
    model = net()
    made = cut(model, X)
    both = copy.deepcopy({"model": model, "suffix": made.suffix})
    assert both["suffix"].model is both["model"]
    with torch.no_grad():
        both["model"][3].weight.zero_()
        both["model"][3].bias.fill_(2.0)
    assert both["suffix"](*made.prefix(X)).eq(2).all()
    assert same_bits(made.suffix(*made.prefix(X)), model(X))


def test_a_copied_cut_reads_the_frozen_tensors_of_its_own_model() -> None:
    made = cut(net(), X)
    copied = copy.deepcopy(made)
    assert copied.suffix.model is not made.suffix.model
    assert copied.key == made.key
    with torch.no_grad():
        copied.suffix.model[0].bias.fill_(7.0)
    expected = copied.suffix.model(X)
    assert same_bits(copied.suffix(*copied.prefix(X)), expected)
    assert same_bits(made.suffix(*made.prefix(X)), made.suffix.model(X))
    assert not same_bits(expected, made.suffix.model(X))
    assert copied.prefix.graph is not None
    assert same_bits(copied.prefix.graph(X)[0], copied.prefix(X)[0])


def test_a_pickled_suffix_trains_as_the_original_does() -> None:
    made = cut(net(), X)
    features = made.prefix(X)
    read = pickle.loads(pickle.dumps(made.suffix))
    assert isinstance(read, Suffix)
    assert trained(read, features) == trained(made.suffix, features)


class Everything(nn.Module):
    """What a graph can hold: inner graphs, constants, symbols, buffers, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 40), nn.Linear(40, 2)
        self.norm, self.drop = nn.BatchNorm1d(40), nn.Dropout()
        self.mean = torch.ones(40)

    def forward(self, x: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            y = self.below(x).relu() - self.mean * torch.tensor([0.5])
        rows = torch.arange(y.shape[0]).float().mean()
        return {"logits": self.head(self.drop(self.norm(y))), "more": (y, [rows, None, "as is"])}


def everything() -> nn.Module:
    torch.manual_seed(0)
    model = Everything()
    fl.freeze(model, "below")
    return model


@pytest.mark.parametrize("make", [net, everything], ids=["plain", "everything"])
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copy", "pickle"]
)
def test_a_cut_that_was_copied_or_pickled_is_the_same_cut(
    make: Callable[[], nn.Module], again: Callable[[Cut], Cut]
) -> None:
    made = cut(make(), X)
    other = again(made)
    assert str(other) == str(made)
    assert other.key == made.key
    for mode in (True, False):
        assert outcome(other, mode) == outcome(made, mode)


def outcome(made: Cut, mode: bool) -> list[Any]:
    """Features by the graph and by the halves, outputs, gradients and buffers, as plain lists."""
    torch.manual_seed(1)
    model = made.suffix.model.train(mode)
    assert made.prefix.graph is not None
    values, by_graph = made.prefix(X), made.prefix.graph(X)
    out = made.suffix(*values)
    tensors, _ = flatten_output(out)
    tensors[0].sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    told = [*values, *by_graph, *tensors, *gradients, *model.buffers()]
    rest = out["more"][1][1:] if isinstance(out, dict) else None
    return [rest, len(gradients), *(tensor.tolist() for tensor in told)]


def test_a_cut_behind_a_named_submodule_is_copied_and_pickled_with_its_model() -> None:
    backbone, head = net()[:3], nn.Linear(12, 2)
    made = cut(nn.Sequential(backbone, head), X, at="0")
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        model = other.suffix.model
        with torch.no_grad():
            model[0][2].bias.fill_(3.0)
            model[1].bias.fill_(5.0)
        assert same_bits(other.suffix(*other.prefix(X)), model(X))
        assert same_bits(made.suffix(*made.prefix(X)), made.suffix.model(X))


class Computed(torch.utils.data.Dataset[Tensor]):
    def __init__(self, made: Cut) -> None:
        self.made = made

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, place: int) -> Tensor:
        torch.set_num_threads(1)
        with torch.no_grad():
            return self.made.prefix(X[place : place + 1])[0][0]


def test_worker_processes_that_are_spawned_take_a_cut() -> None:
    made = cut(net(), X)
    spawn = multiprocessing.get_context("spawn")
    loader = DataLoader(Computed(made), batch_size=5, num_workers=1, multiprocessing_context=spawn)
    (found,) = loader
    torch.testing.assert_close(found, made.prefix(X)[0])


# Tensors that take the place of others


def test_tensors_assigned_from_a_state_dict_are_those_that_are_used() -> None:
    model = net()
    made = cut(model, X)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["3.weight"] += 1.0
    model.load_state_dict(state, assign=True)
    assert same_bits(made.suffix(*made.prefix(X)), model(X))
    made.suffix(*made.prefix(X)).sum().backward()
    assert model[3].weight.grad is not None


def test_a_new_head_of_the_same_kind_is_the_one_that_is_used() -> None:
    model = net()
    made = cut(model, X)
    made.suffix(*made.prefix(X))
    model[3] = nn.Linear(12, 2)
    assert same_bits(made.suffix(*made.prefix(X)), model(X))
    made.suffix(*made.prefix(X)).sum().backward()
    assert model[3].weight.grad is not None


def test_functional_calls_compute_with_the_tensors_they_are_given() -> None:
    model = net()
    made = cut(model, X)
    features = made.prefix(X)
    given = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    out = torch.func.functional_call(made.suffix, given, features)
    assert out.eq(0).all()

    def loss(head: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(made.suffix, head, features).square().sum()

    head = {"3.weight": model[3].weight.detach(), "3.bias": model[3].bias.detach()}
    grads = torch.func.grad(loss)(head)
    assert grads["3.weight"].abs().sum() > 0


def test_an_averaged_suffix_answers_with_the_average() -> None:
    model = net()
    made = cut(model, X)
    averaged = AveragedModel(made.suffix)
    averaged.update_parameters(made.suffix)
    with torch.no_grad():
        model[3].bias.add_(4.0)
    averaged.update_parameters(made.suffix)
    gap = made.suffix(*made.prefix(X)) - averaged(*made.prefix(X))
    torch.testing.assert_close(gap, torch.full_like(gap, 2.0))


def test_frozen_values_above_the_line_are_read_anew_too() -> None:
    class Biased(nn.Module):
        """The suffix adds what is computed from a frozen table alone."""

        def __init__(self) -> None:
            super().__init__()
            self.below, self.table, self.head = nn.Linear(6, 4), nn.Embedding(3, 8), nn.Linear(8, 2)
            self.up = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.up(self.below(x)) + self.table(torch.tensor([2])).exp())
            return y

    model = Biased()
    fl.freeze(model, "below | table")
    made = cut(model, X)
    with torch.no_grad():
        model.table.weight.add_(1.0)
    assert same_bits(made.suffix(*made.prefix(X)), model(X))


def test_the_state_of_a_suffix_is_that_of_its_model() -> None:
    model = net()
    made = cut(model, X)
    assert list(made.suffix.state_dict()) == list(model.state_dict())
    assert dict(made.suffix.named_parameters()) == dict(model.named_parameters())
    other = cut(net(), X)
    with torch.no_grad():
        other.suffix.model[3].bias.fill_(9.0)
    made.suffix.load_state_dict(other.suffix.state_dict())
    assert same_bits(made.suffix(*made.prefix(X)), other.suffix(*other.prefix(X)))
