"""Metrics of a model on data: in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import torch
from torch import Tensor, nn

from frostline.choices import StepPrecision
from frostline.data import Batches
from frostline.devices import Compute
from frostline.engine.steps import batch_errors, call, non_finite
from frostline.engine.training import Hook, Predictions
from frostline.freezing.modes import modes_kept
from frostline.session import Forward
from frostline.tasks import Metrics, Task


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
    """Metrics of `model` on data, in eval mode without gradients; every mode is restored.

    Args:
        forward: as for `train`.

    Raises:
        DataError: a target does not go with the task.
        NonFiniteLoss: an output is NaN; names its batch.
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
        forward: as for `train`.

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
) -> Predictions:
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    names: list[str] = []
    with modes_kept(model), torch.no_grad(), closing(batches.epoch(0)) as given:
        model.eval()
        for number, batch in enumerate(given):
            with arithmetic.autocast(), batch_errors(batch):
                output = call(forward, batch.inputs, arithmetic)
            if output.isnan().any():
                raise non_finite("the model's output became NaN", batch.names)
            outputs.append(output.float().cpu())
            targets.append(batch.targets.cpu())
            names.extend(batch.names)
            for hook in hooks:
                hook.on_batch("validate", number + 1, len(batches))
    return Predictions(torch.cat(outputs), torch.cat(targets), tuple(names))


def summarised(task: Task, found: Predictions) -> Metrics:
    """What the task says of predictions, checked."""
    task.check(found.outputs, found.targets, found.names)
    return task.summarise(found.outputs, found.targets)
