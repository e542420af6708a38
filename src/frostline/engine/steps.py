"""Where a batch goes through a model: to make a step, or to be predicted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.calling import call_with
from frostline.choices import StepPrecision
from frostline.data import Batch, Batches
from frostline.devices import Compute
from frostline.engine.training import Hook, Training
from frostline.errors import FreezeError, NonFiniteLoss, TrainingError
from frostline.freezing.modes import modes_kept
from frostline.models import logits_of
from frostline.session import Forward
from frostline.tasks import Metrics, Predictions, Task
from frostline.world import ALONE, World, gathered, gathered_names


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
        with _batch_errors(batch):
            with self._arithmetic.autocast():
                outputs = _call(forward, batch.inputs, self._arithmetic)
                if check:
                    self._task.check(outputs.detach(), batch.targets, batch.names)
                loss = self._task.loss(outputs.float(), targets)
            value = self._update(loss, batch)
        with torch.no_grad():
            return value, self._task.sums(outputs.detach(), targets)

    def _update(self, loss: Tensor, batch: Batch) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise _non_finite(f"the loss became {value}", batch.names)
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


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    task: Task,
    device: str = "auto",
    precision: StepPrecision = "fp32",
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Metrics:
    """Metrics of what `predict` gives.

    Raises:
        DataError: a target does not go with the task.
        NonFiniteLoss: as `predict`.
    """
    found = predict(
        model, batches, device=device, precision=precision, forward=forward, hooks=hooks
    )
    return summarised(task, found)


def predict(
    model: nn.Module,
    batches: Batches,
    *,
    device: str = "auto",
    precision: StepPrecision = "fp32",
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Predictions:
    """Outputs of `model` for data, in eval mode without gradients; every mode is restored.

    Args:
        forward: what batches go through, if not `model` itself: the suffix of a cut.

    Raises:
        NonFiniteLoss: an output is NaN; names its batch.
    """
    arithmetic = Compute(device, precision)
    model.to(arithmetic.device)
    return predictions(
        model, batches, arithmetic, model if forward is None else forward, tuple(hooks)
    )


def predictions(
    model: nn.Module,
    batches: Batches,
    arithmetic: Compute,
    forward: Forward,
    hooks: tuple[Hook, ...],
    *,
    world: World = ALONE,
) -> Predictions:
    """Outputs for the samples of all processes that share the batches, in the order of ranks."""
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    names: list[str] = []
    with modes_kept(model), torch.no_grad(), closing(batches.epoch(0)) as given:
        model.eval()
        for number, batch in enumerate(given):
            with arithmetic.autocast(), _batch_errors(batch):
                output = _call(forward, batch.inputs, arithmetic)
            if output.isnan().any():
                raise _non_finite("the model's output became NaN", batch.names)
            outputs.append(output.float().cpu())
            targets.append(batch.targets.cpu())
            names.extend(batch.names)
            for hook in hooks:
                hook.on_batch("validate", number + 1, len(batches))
    return Predictions(
        gathered(world, torch.cat(outputs)),
        gathered(world, torch.cat(targets)),
        gathered_names(world, names),
    )


def summarised(task: Task, found: Predictions) -> Metrics:
    """What the task says of predictions, checked."""
    task.check(found.outputs, found.targets, found.names)
    return task.summarise(found.outputs, found.targets)


def _call(forward: Forward, inputs: Any, arithmetic: Compute) -> Tensor:
    """Outputs for a batch; a dict goes in as keyword arguments, a tuple or list as positional."""
    return logits_of(call_with(forward, arithmetic.to_device(inputs)))


@contextmanager
def _batch_errors(batch: Batch) -> Iterator[None]:
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


def _non_finite(what: str, names: Sequence[str]) -> NonFiniteLoss:
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return NonFiniteLoss(
        f"{what} on the batch of {named}. No step was made with it. Look at these samples; else "
        "lower the learning rate (--lr) or clip gradients (--clip-norm 1)."
    )
