"""The one place where a batch becomes a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from frostline.calling import call_with
from frostline.data import Batch
from frostline.devices import Compute
from frostline.engine.training import Training
from frostline.errors import FreezeError, NonFiniteLoss, TrainingError
from frostline.models import logits_of
from frostline.session import Forward
from frostline.tasks import Task


@final
class Stepper:
    """Steps of one phase, by the session's optimizer."""

    def __init__(self, training: Training, arithmetic: Compute, task: Task) -> None:
        recipe, groups = training.recipe, training.optimizer.param_groups
        self._arithmetic = arithmetic
        self._clip_norm = recipe.clip_norm
        self._names = [name for group in groups for name in group["param_names"]]
        self._trainable = [p for group in groups for p in group["params"]]
        arithmetic.take(training.optimizer)
        training.scaler = arithmetic.scaler
        if training.scaler is not None and training.scaled:
            training.scaler.load_state_dict(dict(training.scaled))
            training.scaled = {}
        self._task = task
        self.unreached: tuple[str, ...] | None = None

    def step(
        self, forward: Forward, batch: Batch, *, check: bool = True
    ) -> tuple[float, Mapping[str, Tensor]]:
        """One optimizer step; gives the batch's loss and the task's sums over it.

        Args:
            check: whether the targets are still to be checked; once an epoch has seen them, no.
        """
        targets = batch.targets.to(self._arithmetic.device, non_blocking=True)
        with batch_errors(batch):
            with self._arithmetic.autocast():
                outputs = call(forward, batch.inputs, self._arithmetic)
                if check:
                    self._task.check(outputs.detach(), batch.targets, batch.names)
                loss = self._task.loss(outputs.float(), targets)
            value = self._update(loss, batch)
        with torch.no_grad():
            return value, self._task.sums(outputs.detach(), targets)

    def _update(self, loss: Tensor, batch: Batch) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise non_finite(f"the loss became {value}", batch.names)
        if not loss.requires_grad:
            raise FreezeError(
                "the loss does not depend on any trainable parameter, so nothing would be "
                "learned. Check that what you train is used in the model's forward, and that no "
                "reentrant checkpointing stands around it (use_reentrant=False)."
            )
        self._arithmetic.backward(loss)
        if self.unreached is None:
            pairs = zip(self._names, self._trainable, strict=True)
            self.unreached = tuple(name for name, p in pairs if p.grad is None)
        if self._clip_norm is not None:
            self._arithmetic.clip(self._trainable, self._clip_norm)
        self._arithmetic.step()
        for parameter in self._trainable:
            parameter.grad = None
        return value


def call(forward: Forward, inputs: Any, arithmetic: Compute) -> Tensor:
    """Outputs for a batch; a dict goes in as keyword arguments, a tuple or list as positional."""
    return logits_of(call_with(forward, arithmetic.to_device(inputs)))


@contextmanager
def batch_errors(batch: Batch) -> Iterator[None]:
    """Say what to do about the two ways in which a sound model refuses a batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"a batch of {len(batch.targets)} samples does not fit into the device's memory. "
            "Use a smaller --batch-size, or --precision bf16."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch holds {len(batch.targets)} sample, but a trainable batch norm needs at "
            "least 2 to take statistics. Choose a --batch-size that leaves no single sample "
            "at the end, or freeze the norms: kind:norm."
        ) from error


def non_finite(what: str, names: Sequence[str]) -> NonFiniteLoss:
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return NonFiniteLoss(
        f"{what} on the batch of {named}. No step was made with it. Look at these samples; else "
        "lower the learning rate (--lr) or clip gradients (--clip-norm 1)."
    )
