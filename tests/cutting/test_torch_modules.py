"""PyTorch's own database of modules: each, frozen, stays frozen, and can be cut and leaned.

The first inputs of each module are taken, at the database's sizes; what is left out, or refused,
stands in a table with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.cutting import cut
from frostline.fingerprints.parts import same_bits
from torch_databases import database

common_modules = database("common_modules")

# Some modules warn of options that the database tries on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")

# Inputs of each module that are tried: all modes of each differ by options, not by kind.
MOST = 4
LEFT_OUT = {
    "Loss": "has no parameters, and gives one number for the whole batch",
    "FractionalMaxPool": "the database hands it random numbers of another dtype, which it refuses",
    "Lazy": "is the class without Lazy once it has seen an input",
}
# Of the modules with parameters (the others are one operation each, at most): why no line is drawn.
_ALONE = "its first input is one sample without a batch"
REFUSED = dict.fromkeys(["PReLU", "RNNCell", "GRUCell", "LSTMCell", "RNN", "GRU", "LSTM"], _ALONE)


@dataclass
class Case:
    name: str
    module: nn.Module
    args: tuple[Any, ...]


class Below(nn.Module):
    """The module, and one number of its own, so that there is something to freeze in each."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.gain = module, nn.Parameter(torch.tensor(1.5))

    def forward(self, *args: Any) -> Tensor:
        output = self.module(*args)
        while not isinstance(output, Tensor):
            output = output[0]
        return output * self.gain


class Net(nn.Module):
    """One number trained below the frozen module, if asked for, and one above it."""

    def __init__(self, module: nn.Module, *, stem: bool = False) -> None:
        super().__init__()
        self.below, self.head = Below(module), nn.Parameter(torch.tensor(0.5))
        self.stem = nn.Parameter(torch.tensor(2.0)) if stem else None

    def forward(self, first: Tensor, *args: Any) -> Tensor:
        if self.stem is not None and first.is_floating_point():
            first = first * self.stem
        return self.below(first, *args).square() * self.head


def cases(most: int) -> Iterator[Case]:
    for info in common_modules.module_db:
        name = info.name.removeprefix("nn.")
        if any(word in name for word in LEFT_OUT):
            continue
        torch.manual_seed(0)
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
        )
        for given in inputs[:most]:
            made, call = given.constructor_input, given.forward_input
            if call is not None and not call.kwargs:
                module = info.module_cls(*made.args, **made.kwargs)
                yield Case(name, module, tuple(call.args))


def test_each_module_stays_frozen_to_the_bit_through_a_step() -> None:
    tried = 0
    for case in cases(MOST):
        net = Net(case.module)
        fl.freeze(net, "below")
        frozen = {**dict(net.below.named_parameters()), **dict(net.below.named_buffers())}
        before = {name: tensor.clone() for name, tensor in frozen.items()}
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        net.train()
        net(*case.args).sum().backward()
        optimizer.step()
        moved = [name for name in before if not same_bits(frozen[name], before[name])]
        assert not moved, f"{case.name}: {moved}"
        assert net.head.grad is not None, case.name
        tried += 1
    assert tried > 200


def test_each_module_leaned_gives_the_plain_result() -> None:
    for case in cases(2):
        net = Net(case.module, stem=True)
        fl.freeze(net, "below")
        net.train()
        plain = outcome(net, case)
        with fl.lean(net, at_least_bytes=0):
            leaned = outcome(net, case)
        for one, other in zip(plain, leaned, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True), case.name


def outcome(net: Net, case: Case) -> list[Tensor]:
    """The output, and the gradients of what is trained."""
    torch.manual_seed(0)
    net.zero_grad()
    output = net(*(a.clone() if isinstance(a, Tensor) else a for a in case.args))
    output.sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return [output.detach(), *gradients]


def test_each_module_is_cut_to_the_plain_result_or_refused_for_a_reason() -> None:
    refused = {}
    for case in cases(1):
        if not any(True for _ in case.module.parameters()) and "InstanceNorm" not in case.name:
            continue
        net = Net(case.module)
        fl.freeze(net, "below")
        try:
            made = cut(net, case.args)
        except fl.CutError as error:
            refused[case.name] = str(error)
            continue
        net.eval()
        with torch.no_grad():
            expected, found = net(*case.args), made.suffix(*made.prefix(*case.args))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True), case.name
    assert refused.keys() == REFUSED.keys(), refused
    assert all("batch" in message for message in refused.values()), refused
