"""What a model made of each batch, put together into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_flatten, tree_unflatten

from frostline.errors import ModelError
from frostline.world import World, gathered


def joined(parts: Sequence[Any], world: World, padding: int | None = None) -> Any:
    """The rows of all batches and processes, in their order.

    Args:
        parts: a tensor for each batch, or what else holds tensors, one like the other.
        padding: what samples are filled up with to the size of the largest; None where all have
            one size.
    Raises:
        ModelError: they do not, or a batch's output is unlike the others'.
    """
    flat = [tree_flatten(part) for part in parts]
    structure = flat[0][1]
    if any(other != structure for _, other in flat):
        raise ModelError(
            "the model returns outputs of another kind for some batches than for others, so they "
            "cannot be judged together. Let it return the same for each."
        )
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([_joined(list(column), world, padding) for column in columns], structure)


def _joined(column: list[Any], world: World, padding: int | None) -> Any:
    if not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in column):
        return column[-1]  # of no sample, as a loss that the model counted itself
    sizes = {leaf.shape[1:] for leaf in column}
    if len(sizes) > 1 and padding is not None:
        largest = [max(size) for size in zip(*sizes, strict=True)]
        column = [_padded(leaf, largest, padding) for leaf in column]
    elif len(sizes) > 1:
        one, other, *_ = sorted(map(tuple, sizes))
        raise ModelError(
            f"samples of the batches have the shapes {one} and {other}, so they cannot be judged "
            "together. Make all alike, or write a task whose kept() gives one shape for each."
        )
    return gathered(world, torch.cat(column))


def _padded(rows: Tensor, largest: Sequence[int], padding: int) -> Tensor:
    missing = [want - have for want, have in zip(largest, rows.shape[1:], strict=True)]
    return pad(rows, [side for m in reversed(missing) for side in (0, m)], value=padding)
