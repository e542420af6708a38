"""What the tests of lean share: one step, plain and leaned, from one state and random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.backward import saved_bytes


@dataclass
class Step:
    output: Tensor
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    saved: int
    random: Tensor


Run = Callable[[nn.Module, Tensor], Tensor]


def step(model: nn.Module, inputs: Tensor, run: Run | None = None) -> Step:
    """A forward and a backward of `model`, which is left as it was."""
    state = copy.deepcopy(model.state_dict())
    own = [*model.parameters(), *model.buffers()]

    def loss() -> Tensor:
        torch.manual_seed(3)
        model.load_state_dict(state)
        output = model(inputs) if run is None else run(model, inputs)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        held.append(output)
        return (output * weights).sum()

    held: list[Tensor] = []
    saved = saved_bytes(loss, besides=own)
    held.clear()
    wanted = [t for t in (*model.parameters(), inputs) if t.requires_grad]
    for tensor in wanted:
        tensor.grad = None
    loss().backward()
    gradients = [t.grad for t in wanted]
    for tensor in wanted:
        tensor.grad = None
    buffers = [b.clone() for b in model.buffers()]
    model.load_state_dict(state)
    return Step(held[0].detach().clone(), gradients, buffers, saved, torch.get_rng_state())


def check(model: nn.Module, inputs: Tensor, run: Run | None = None) -> tuple[int, int]:
    """Leaned equals plain bit for bit and keeps no more; gives both counts of bytes."""
    plain = step(model, inputs, run)
    with fl.lean(model, at_least_bytes=0):
        leaned = step(model, inputs, run)
    assert same([plain.output], [leaned.output])
    assert same(plain.gradients, leaned.gradients)
    assert same(plain.buffers, leaned.buffers)
    assert torch.equal(plain.random, leaned.random)
    return plain.saved, leaned.saved


def is_on() -> bool:
    """Whether anything stands between this thread's calls and torch: lean does in a forward."""
    return bool(torch._C._len_torch_function_stack())


def same(left: Iterable[Tensor | None], right: Iterable[Tensor | None]) -> bool:
    """By value, NaN being like NaN: PyTorch 2.9's statistics of an empty batch are."""
    pairs = list(zip(left, right, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in both
    )
