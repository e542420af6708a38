"""Figures of a model on data: in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from frostline.choices import StepPrecision
from frostline.data import Batches
from frostline.devices import MixedPrecision
from frostline.engine.steps import batch_errors, call, check_targets, non_finite
from frostline.engine.training import Hook, Predictions
from frostline.freezing.modes import modes_kept
from frostline.metrics import Evaluation, evaluate_logits
from frostline.session import Forward


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    classes: Sequence[str],
    device: str = "auto",
    precision: StepPrecision = "fp32",
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Evaluation:
    """Figures of `model` on data, in eval mode without gradients; every mode is restored.

    Args:
        forward: as for `train`.

    Raises:
        DataError: a label is outside the classes.
        NonFiniteLoss: an output is NaN; names its batch.
    """
    found = predict(
        model, batches, device=device, precision=precision, forward=forward, hooks=hooks
    )
    return judge(found, classes)


def predict(
    model: nn.Module,
    batches: Batches,
    *,
    device: str = "auto",
    precision: StepPrecision = "fp32",
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Predictions:
    """Logits of `model` for data, in eval mode without gradients; every mode is restored.

    Args:
        forward: as for `train`.

    Raises:
        NonFiniteLoss: an output is NaN; names its batch.
    """
    arithmetic = MixedPrecision(device, precision)
    model.to(arithmetic.device)
    return predictions(
        model, batches, arithmetic, model if forward is None else forward, tuple(hooks)
    )


def predictions(
    model: nn.Module,
    batches: Batches,
    arithmetic: MixedPrecision,
    forward: Forward,
    hooks: tuple[Hook, ...],
) -> Predictions:
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    names: list[str] = []
    with modes_kept(model), torch.no_grad(), closing(batches.epoch(0)) as given:
        model.eval()
        for number, batch in enumerate(given):
            with arithmetic.autocast(), batch_errors(batch):
                output = call(forward, batch.inputs, arithmetic)
            if output.isnan().any():
                raise non_finite("the model's output became NaN", batch.names)
            logits.append(output.float().cpu())
            targets.append(batch.targets.cpu())
            names.extend(batch.names)
            for hook in hooks:
                hook.on_batch("validate", number + 1, len(batches))
    return Predictions(torch.cat(logits), torch.cat(targets), tuple(names))


def judge(found: Predictions, classes: Sequence[str]) -> Evaluation:
    check_targets(found.targets, len(classes), found.names)
    return evaluate_logits(found.logits, found.targets, classes=classes)
