"""What one training step costs, measured: time, and memory besides the weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.backward import saved_bytes
from frostline.calling import call_with
from frostline.models import logits_of
from frostline.modes import modes_kept


@final
@dataclass(frozen=True, slots=True)
class StepCost:
    """One optimizer step on one batch.

    Attributes:
        seconds: median of the timed steps.
        saved_bytes: activations kept for the backward pass, each storage once, without weights
            and the batch.
        gradient_bytes: of all gradients.
        state_bytes: of what the optimizer keeps.
    """

    seconds: float
    saved_bytes: int
    gradient_bytes: int
    state_bytes: int

    @property
    def nbytes(self) -> int:
        """Memory of a step besides the weights."""
        return self.saved_bytes + self.gradient_bytes + self.state_bytes


def measure_step(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    optimizer: str = "adamw",
    repeats: int = 3,
) -> StepCost:
    """Time and memory of a step of what is trainable in `model`; its weights do not move.

    Args:
        inputs: one batch as the model takes it, on its device.
        targets: class indices, `(batch,)`.
        optimizer: `adamw`, `adam` or `sgd` with momentum.
        repeats: timed steps after one to warm up.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A step of zero may still turn -0.0 into 0.0.
    moving = [(t, t.detach().clone()) for t in (*parameters, *model.buffers())]
    gradients = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None  # a gradient from before would be added to, in place
    with modes_kept(model), torch.random.fork_rng(devices=()):
        model.train()
        made = still_optimizer(optimizer, parameters)
        given = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
        there = (*model.parameters(), *model.buffers(), *given)
        saved = saved_bytes(lambda: _loss(model, inputs, targets), besides=there)
        _loss(model, inputs, targets).backward()  # type: ignore[no-untyped-call]  # torch's own
        size = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        times = [_step(model, made, inputs, targets) for _ in range(repeats + 1)][1:]
    state = sum(_tensor_bytes(kept) for kept in made.state.values())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    with torch.no_grad():
        for tensor, before in moving:
            tensor.copy_(before)
    return StepCost(statistics.median(times), saved, size, state)


def still_optimizer(name: str, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """An optimizer as a run makes it, that moves nothing."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, fused=True)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=0.0, weight_decay=0.0, fused=True)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, targets: Tensor
) -> float:
    start = time.perf_counter()
    _loss(model, inputs, targets).backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _tensor_bytes(kept: Any) -> int:
    return sum(t.nbytes for t in pytree.tree_leaves(kept) if isinstance(t, Tensor))


def _loss(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_of(call_with(model, inputs)), targets)
