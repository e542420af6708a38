"""The networks of benchmarks/memory.py, leaned, by what is trained of them: end to end."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lean_world import same
from torch import Tensor, nn

import frostline as fl
from frostline.backward import saved_bytes
from frostline.estimates.losses import class_loss
from frostline.estimates.tracing import trace_step

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from memory_models import BUILDERS, SELECTIONS, Subject, subject

NAMES = [name for name in BUILDERS if name != "vgg11_bn"]
CELLS = [(name, what) for name in NAMES for what in SELECTIONS]
CELLS += [("resnet50", "biases"), ("vgg11_bn", "stem")]
OPTIONAL = {"vit_small": "timm", "bert": "transformers"}


def small(name: str, what: str) -> Subject:
    """Four pictures of 64 pixels; two of 224 where the network takes no other."""
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    return subject(
        name, what, **({"batch": 2} if name == "vit_small" else {"batch": 4, "pixels": 64})
    )


def train(one: Subject, model: nn.Module, steps: int) -> Iterator[list[Tensor]]:
    """After each step: the loss, gradients, weights, buffers and the input, which moves as well."""
    inputs = one.inputs.detach().clone().requires_grad_(one.inputs.requires_grad)
    moving = [t for t in (*model.parameters(), inputs) if t.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.01, momentum=0.9)
    torch.manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), one.targets)
        loss.backward()
        gradients = [t.grad.clone() for t in moving if t.grad is not None]
        optimizer.step()
        yield [
            loss.detach(),
            *gradients,
            *(t.detach().clone() for t in (*moving, *model.buffers())),
        ]


@pytest.mark.parametrize(("name", "what"), CELLS)
def test_five_steps_end_at_the_same_bits(name: str, what: str) -> None:
    one = small(name, what)
    leaned = copy.deepcopy(one.model)
    with fl.lean(leaned, at_least_bytes=0):
        found = list(train(one, leaned, 5))
    for plain, lean in zip(list(train(one, one.model, 5)), found, strict=True):
        assert len(plain) > 2
        assert same(plain, lean)


@pytest.mark.parametrize(("name", "what"), CELLS)
def test_an_estimate_knows_what_is_kept_plain_and_leaned(name: str, what: str) -> None:
    one = small(name, what)
    given = [*one.model.parameters(), *one.model.buffers(), one.inputs]
    plain = saved_bytes(lambda: class_loss(one.model(one.inputs)), besides=given)
    with fl.lean(one.model):
        lean = saved_bytes(lambda: class_loss(one.model(one.inputs)), besides=given)
    assert lean <= plain
    rows = len(one.inputs)
    assert trace_step(one.model, one.inputs, batch_size=rows).saved_bytes == near(plain)
    with fl.lean(one.model):
        assert trace_step(one.model, one.inputs, batch_size=rows).saved_bytes == near(lean)


def near(nbytes: int) -> object:
    return pytest.approx(nbytes, rel=0.05)
