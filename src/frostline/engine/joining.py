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


def joined(
    parts: Sequence[Any], world: World, padding: int | None = None, *, order: Tensor | None = None
) -> Any:
    """The rows of all batches and processes.

    Args:
        parts: a tensor for each batch, or what else holds tensors, one like the other.
        padding: what samples are filled up with to the size of the largest; None where all have
            one size.
        order: of the rows of all processes, which come in the order of their ranks; by default
            as they come.
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
    joining = [_joined(list(column), world, padding, order) for column in columns]
    return tree_unflatten(joining, structure)


def places_of(world: World, counts: Sequence[int]) -> Tensor | None:
    """The order in which one process would have the rows of all.

    Args:
        counts: rows of this process in each batch, of which process `r` has each `size`-th.
    """
    if world.size == 1:
        return None
    keys = [
        torch.arange(count) * world.size + world.rank + (number << 32)
        for number, count in enumerate(counts)
    ]
    return gathered(world, torch.cat(keys)).argsort()


def _joined(column: list[Any], world: World, padding: int | None, order: Tensor | None) -> Any:
    if not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in column):
        return column[-1]  # of no sample, as a loss that the model counted itself
    sizes = _sizes(column, world)
    if len(sizes) > 1 and padding is not None:
        largest = [max(size) for size in zip(*sizes, strict=True)]
        column = [_padded(leaf, largest, padding) for leaf in column]
    elif len(sizes) > 1:
        one, other, *_ = sorted(map(tuple, sizes))
        raise ModelError(
            f"samples of the batches have the shapes {one} and {other}, so they cannot be judged "
            "together. Make all alike, or write a task whose kept() gives one shape for each."
        )
    rows = gathered(world, torch.cat(column))
    return rows if order is None else rows[order.to(rows.device)]


def _sizes(column: list[Tensor], world: World) -> set[tuple[int, ...]]:
    """The shapes that samples of all processes have."""
    own = sorted({tuple(leaf.shape[1:]) for leaf in column})
    if world.size == 1 or not own[0]:
        return set(own)
    every = gathered(world, torch.tensor(own))
    return set(map(tuple, every.tolist()))


def _padded(rows: Tensor, largest: Sequence[int], padding: int) -> Tensor:
    missing = [want - have for want, have in zip(largest, rows.shape[1:], strict=True)]
    return pad(rows, [side for m in reversed(missing) for side in (0, m)], value=padding)
