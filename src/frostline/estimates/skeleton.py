"""A model without its numbers: the same modules, hooks and modes over fake tensors.

A fake tensor has a shape, a dtype and a place in memory, and no memory. What runs on them runs
PyTorch's own code, autograd included, so that what is saved for the backward pass is what PyTorch
would save; only the kernels are left out.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from frostline.errors import ConfigError


def fake_mode() -> FakeTensorMode:
    """In which a skeleton is made and run; tensors that a module keeps to itself are let in."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def skeleton(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of `model` whose parameters and buffers are fake; switches and modes are the same.

    Raises:
        ConfigError: the model cannot be copied.
    """
    # What deepcopy has "copied already": so every reference to a tensor, also in a module's own
    # lists as LSTM keeps them, becomes one to its fake.
    fakes: dict[int, Any] = {
        id(tensor): mode.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())
    }
    try:
        return copy.deepcopy(model, fakes)
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be copied, which an estimate needs ({error}). "
            "Let its __deepcopy__ work, or take what cannot be copied out of its attributes."
        ) from error


def fake_batch(example: Any, rows: int, mode: FakeTensorMode) -> Any:
    """A batch of `rows` samples with the shapes, dtypes and memory format of `example`.

    Args:
        example: a tensor, or a tuple or mapping of them, the first axis over samples.
    Raises:
        ConfigError: it holds no tensor with an axis over samples.
    """
    samples = _samples(example)

    def grown(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != samples:
            return mode.from_tensor(tensor)
        shape = (rows, *tensor.shape[1:])
        with mode:
            return torch.empty(
                shape,
                dtype=tensor.dtype,
                device=tensor.device,
                memory_format=_layout(tensor),
                requires_grad=tensor.requires_grad,
            )

    return pytree.tree_map_only(Tensor, grown, example)


def real_batch(example: Any, rows: int) -> Any:
    """A batch of `rows` samples, those of `example` over and over.

    Raises:
        ConfigError: it holds no tensor with an axis over samples.
    """
    samples = _samples(example)

    def repeated(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != samples:
            return tensor
        found = tensor.detach()[torch.arange(rows, device=tensor.device) % samples]
        found = found.contiguous(memory_format=_layout(tensor))
        return found.requires_grad_(tensor.requires_grad)

    return pytree.tree_map_only(Tensor, repeated, example)


def _samples(example: Any) -> int:
    """How many samples a batch has, by the first axis of its first tensor."""
    sizes = [t.shape[0] for t in pytree.tree_leaves(example) if isinstance(t, Tensor) and t.dim()]
    if not sizes or not sizes[0]:
        raise ConfigError(
            "the example holds no tensor with an axis over samples. Give one batch as the model "
            "takes it: a tensor, a tuple or a mapping."
        )
    return int(sizes[0])


def _layout(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    keep = channels_last and not tensor.is_contiguous()
    return torch.channels_last if keep else torch.contiguous_format
