"""Tensors that are made of others, as libraries for quantisation make them: bytes and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def is_wrapped(tensor: Tensor) -> bool:
    """Whether it is of a subclass that is made of other tensors: few operations take those."""
    # Only a DTensor has a mesh: of these each process holds a part (see sharding.py).
    return hasattr(tensor, "__tensor_flatten__") and not hasattr(tensor, "device_mesh")


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that its numbers take; torch tells those of the dtype that a wrapped one stands for."""
    return sum(part.nbytes for part in _made_of(tensor))


def memory_of(tensor: Tensor) -> int:
    """Address of its memory; of a wrapped one, of the first tensor that it is made of."""
    return int(next(_made_of(tensor)).untyped_storage().data_ptr())


def _made_of(tensor: Any) -> Iterator[Tensor]:
    if not is_wrapped(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _made_of(getattr(tensor, name))
