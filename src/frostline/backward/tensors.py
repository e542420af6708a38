"""What a rule goes by: the user's settings, which tensors it may touch, how one is laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from frostline.errors import ConfigError

Gelu = Literal["exact", "compressed"]
Rules = dict[Any, Callable[..., Any]]  # of each operation

# Fake tensors trace a step to predict what it keeps; other kinds have rules of their own.
_KINDS = (Tensor, nn.Parameter, FakeTensor, nn.Buffer)
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda")


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is leaned.

    Attributes:
        at_least_bytes: an operation on fewer than that is left to PyTorch: what there is to save
            is not worth the microseconds of a function in Python. As `benchmarks/lean_threshold.py`
            has it, a chain of the cheapest operations takes 2.4 times as long on 64 KiB, 1.26 times
            on 1 MiB.
        gelu: `compressed` keeps a byte an element of its slope instead of the input.
    """

    at_least_bytes: int = 1 << 20
    gelu: Gelu = "exact"

    def __post_init__(self) -> None:
        if self.gelu not in get_args(Gelu):
            raise ConfigError(f"gelu={self.gelu!r} is not known. Give 'exact' or 'compressed'.")


def is_ordinary(*tensors: Tensor | None) -> bool:
    """Whether all are dense floating-point tensors of no special kind, on a known device."""
    return all(
        t is None
        or (
            type(t) in _KINDS
            and t.dtype in _FLOATS
            and t.layout is torch.strided
            and t.device.type in _DEVICES
        )
        for t in tensors
    )


def is_large(tensor: Tensor, settings: Settings) -> bool:
    """Whether the tensor is large enough to do without; an empty one never is."""
    return tensor.nbytes >= max(settings.at_least_bytes, 1)


def may_spare(settings: Settings, tensor: Tensor, *others: Tensor | None) -> bool:
    """Whether it is large enough to do without, and ordinary, as the others are."""
    return is_ordinary(tensor, *others) and is_large(tensor, settings)


def is_spared(tensor: Tensor, settings: Settings) -> bool:
    """Whether a gradient passes through it, and it is ordinary and large enough to do without."""
    return wants(tensor) and may_spare(settings, tensor)


def may_be_overwritten(tensor: Tensor) -> bool:
    """Whether an operation of ours may write its output over this input.

    PyTorch refuses a leaf, a view of a leaf and one of several views before anything is written.
    For a function in Python it does so afterwards, with the numbers gone; which views it will
    refuse cannot be asked, so all are left to it.
    """
    return not tensor.is_leaf and not tensor._is_view()


def wants(tensor: Tensor | None) -> bool:
    """Whether a gradient of it is wanted now."""
    return tensor is not None and tensor.requires_grad


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor lives."""
    return torch.is_autocast_enabled(tensor.device.type)


def memory_of(tensor: Tensor) -> int:
    """What tells its memory from others; the same for all views of it."""
    return int(tensor.untyped_storage()._cdata)


@final
class Layout:
    """Sizes, strides and type of a tensor that is not kept."""

    __slots__ = ("device", "dtype", "sizes", "strides")

    def __init__(self, tensor: Tensor) -> None:
        self.sizes = tensor.shape
        self.strides = tensor.stride()
        self.dtype = tensor.dtype
        self.device = tensor.device

    def stand_in(self) -> Tensor:
        """Memory laid out likewise, with nothing in it, for a kernel that goes by layout alone.

        A zero-stride one would be copied by some kernels, and cannot be channels-last; this takes
        addresses, and on the CPU no memory before somebody reads it.
        """
        return torch.empty_strided(self.sizes, self.strides, dtype=self.dtype, device=self.device)

    def is_of(self, tensor: Tensor) -> bool:
        """Whether the tensor is laid out so."""
        return (
            tensor.shape == self.sizes
            and tensor.stride() == self.strides
            and tensor.dtype == self.dtype
        )
