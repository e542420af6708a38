"""What one training step costs, measured: time, and memory besides the weights."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from frostline.models import logits_of
from frostline.modes import modes_kept


@final
@dataclass(frozen=True, slots=True)
class StepCost:
    """One step of AdamW on one batch.

    Attributes:
        seconds: median of the timed steps.
        saved_bytes: activations kept for the backward pass, each storage once, without weights.
        gradient_bytes: of all gradients.
        state_bytes: of the optimizer's two moments.
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
    model: nn.Module, inputs: Tensor, targets: Tensor, *, repeats: int = 3
) -> StepCost:
    """Time and memory of a step of what is trainable in `model`; its weights do not move.

    Args:
        inputs: one batch, on the model's device.
        targets: class indices, `(batch,)`.
        repeats: timed steps after one to warm up.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A step of zero may still turn -0.0 into 0.0.
    moving = [(t, t.detach().clone()) for t in (*parameters, *model.buffers())]
    gradients = [p.grad for p in parameters]
    with modes_kept(model), torch.random.fork_rng(devices=()):
        model.train()
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        saved = _saved_bytes(model, inputs, targets)
        times = [_step(model, optimizer, inputs, targets) for _ in range(repeats + 1)][1:]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    with torch.no_grad():
        for tensor, before in moving:
            tensor.copy_(before)
    size = sum(p.nbytes for p in parameters)
    return StepCost(statistics.median(times), saved, size, 2 * size)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
) -> float:
    start = time.perf_counter()
    _loss(model, inputs, targets).backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _saved_bytes(model: nn.Module, inputs: Tensor, targets: Tensor) -> int:
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    owned.add(inputs.untyped_storage().data_ptr())
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(model, inputs, targets)
    del loss
    return sum(found.values())


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_of(model(inputs)), targets)
