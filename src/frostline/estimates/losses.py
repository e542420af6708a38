"""What a step computes, on numbers or without: a loss, under autocast or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frostline.devices import device_of
from frostline.models import logits_of

Loss = Callable[[Any], Tensor]


def class_loss(output: Any, targets: Tensor | None = None) -> Tensor:
    """Cross-entropy of a model's logits.

    Args:
        output: of the model; logits `(batch, classes, ...)`, or `(batch, tokens, classes)`.
        targets: class indices, `(batch, ...)`; by default class 0 everywhere.
    """
    logits = logits_of(output)
    if targets is None:
        if logits.dim() == 3:  # of each token
            logits = logits.flatten(0, 1)
        shape = (logits.shape[0], *logits.shape[2:])
        targets = torch.zeros(shape, dtype=torch.long, device=logits.device)
    return nn.functional.cross_entropy(logits, targets)


def autocast(model: nn.Module, precision: str) -> Any:
    """The context in which a step of `model` runs its forward pass.

    Args:
        precision: `fp32`, or `bf16` or `fp16` for autocast.
    """
    kind = device_of(model).type
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)
