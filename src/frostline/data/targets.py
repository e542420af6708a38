"""Targets of a batch, however they come, as class indices."""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.errors import DataError


def class_targets(targets: object, count: int, what: str) -> Tensor:
    """`targets` as int64 `(count,)`.

    Args:
        targets: a tensor, array or sequence of `count` whole numbers; `(count, 1)` is accepted.
        what: names their source in the message.
    Raises:
        DataError: fractions, one-hot rows, text, or another number of targets.
    """
    try:
        found = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the targets of {what} are {type(targets).__name__}, not numbers. {_DO}"
        ) from error
    if found.is_floating_point() or found.is_complex():
        raise DataError(f"the targets of {what} are {found.dtype}. {_DO}")
    if found.dim() == 2 and found.shape[1] == 1:
        found = found.squeeze(1)
    if found.shape != (count,):
        raise DataError(
            f"the targets of {what} have the shape {tuple(found.shape)} for {count} samples. {_DO}"
        )
    return found.long()


_DO = "Give one class index, a whole number, for each sample."
