"""How many bytes a forward pass really keeps for its backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from frostline.backward.tensors import memory_of


def saved_bytes(forward: Callable[[], Any], *, besides: Iterable[Tensor] = ()) -> int:
    """Bytes that `forward()` keeps for a backward pass over what it returns.

    Counted once it has returned, so that what was turned into bits on the way counts as bits.
    Each storage counts once, however many tensors lie in it. Works on fake tensors too.

    Args:
        forward: gives the loss; what it returns is let go after counting.
        besides: tensors that are there anyway: parameters and buffers.
    """
    owned = {memory_of(tensor) for tensor in besides}
    saved: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept = apart(tensor)
        saved.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
        alive = [tensor for reference in saved if (tensor := reference()) is not None]
        found = {memory_of(tensor): tensor.untyped_storage().nbytes() for tensor in alive}
    del output
    return sum(nbytes for storage, nbytes in found.items() if storage not in owned)


def apart(tensor: Tensor) -> Tensor:
    """For hooks that keep a tensor: an operation that saves its own output must not hold itself."""
    return tensor if tensor.grad_fn is None else tensor.detach()
