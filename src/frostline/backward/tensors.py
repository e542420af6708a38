"""Which tensors a rule may touch, and what stands in for one that is not kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from frostline.backward.settings import Settings

# Fake tensors trace a step to foretell what it keeps; other kinds have rules of their own.
_KINDS = (Tensor, nn.Parameter, FakeTensor, nn.Buffer)
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda")


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


def is_worth(tensor: Tensor, settings: Settings) -> bool:
    """Whether the tensor is large enough to do without; an empty one never is."""
    return tensor.nbytes >= max(settings.at_least_bytes, 1)


def is_spared(tensor: Tensor, settings: Settings) -> bool:
    """Whether a gradient passes through it, and it is ordinary and large enough to do without."""
    return wants(tensor) and is_ordinary(tensor) and is_worth(tensor, settings)


def wants(tensor: Tensor | None) -> bool:
    """Whether a gradient of it is wanted now."""
    return tensor is not None and tensor.requires_grad


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor lives."""
    return torch.is_autocast_enabled(tensor.device.type)


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

    def zeros(self) -> Tensor:
        """The same where the kernel does read it, for a result that is not used."""
        return self.stand_in().zero_()

    def is_of(self, tensor: Tensor) -> bool:
        """Whether the tensor is laid out so."""
        return (
            tensor.shape == self.sizes
            and tensor.stride() == self.strides
            and tensor.dtype == self.dtype
        )
