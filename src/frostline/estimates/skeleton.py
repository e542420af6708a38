"""A model without its numbers: the same modules, hooks and modes over fake tensors.

A fake tensor has a shape, a dtype and a place in memory, and no memory. What runs on them runs
PyTorch's own code, autograd included, so that what is saved for the backward pass is what PyTorch
would save; only the kernels are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from frostline.errors import ConfigError

_FUSED_LSTM = torch.ops.aten.mkldnn_rnn_layer.default
_FEW, _MORE = 32, 64  # samples

# They read a workspace, and crash on one that the forward pass has not filled.
READERS = frozenset({torch.ops.aten.mkldnn_rnn_layer_backward.default})


def skeleton(model: nn.Module, example: Any, rows: int) -> tuple[nn.Module, Any, FakeTensorMode]:
    """A copy of `model` with fake parameters and buffers, a fake batch, and the mode to run it in.

    Switches and modes of the copy are those of the model; it has no gradients.

    Args:
        example: a tensor, or a tuple or mapping of them, the first axis over samples; the batch has
            `rows` samples of its shapes, dtypes and memory format.
    Raises:
        ConfigError: the model cannot be copied, or the example has no axis over samples.
    """
    # Tensors that a module keeps to itself, neither parameter nor buffer, are let in.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # What deepcopy has "copied already": so every reference to a tensor, also in a module's own
    # lists as LSTM keeps them, becomes one to its fake.
    fakes: dict[int, Any] = {
        id(tensor): mode.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())
    }
    try:
        fake = copy.deepcopy(model, fakes)
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be copied, which an estimate needs ({error}). "
            "Let its __deepcopy__ work, or take what cannot be copied out of its attributes."
        ) from error
    fake.zero_grad(set_to_none=True)
    return fake, _fake_batch(example, rows, mode), mode


def _fake_batch(example: Any, rows: int, mode: FakeTensorMode) -> Any:
    def grown(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty(
                (rows, *tensor.shape[1:]),
                dtype=tensor.dtype,
                device=tensor.device,
                memory_format=_layout(tensor),
                requires_grad=tensor.requires_grad,
            )

    return _batch(example, grown, other=mode.from_tensor)


def real_batch(example: Any, rows: int) -> Any:
    """A batch of `rows` samples, those of `example` over and over.

    Raises:
        ConfigError: it holds no tensor with an axis over samples.
    """

    def repeated(tensor: Tensor) -> Tensor:
        places = torch.arange(rows, device=tensor.device) % len(tensor)
        found = tensor.detach()[places].contiguous(memory_format=_layout(tensor))
        return found.requires_grad_(tensor.requires_grad)

    return _batch(example, repeated, other=lambda tensor: tensor)


def _batch(
    example: Any, put: Callable[[Tensor], Tensor], *, other: Callable[[Tensor], Tensor]
) -> Any:
    """`put` for each tensor with an axis over samples, which are as many as in the first."""
    sizes = [t.shape[0] for t in pytree.tree_leaves(example) if isinstance(t, Tensor) and t.dim()]
    if not sizes or not sizes[0]:
        raise ConfigError(
            "the example holds no tensor with an axis over samples. Give one batch as the model "
            "takes it: a tensor, a tuple or a mapping."
        )

    def changed(tensor: Tensor) -> Tensor:
        return put(tensor) if tensor.dim() and len(tensor) == sizes[0] else other(tensor)

    return pytree.tree_map_only(Tensor, changed, example)


def _layout(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    keep = channels_last and not tensor.is_contiguous()
    return torch.channels_last if keep else torch.contiguous_format


def with_workspace(func: Any, args: tuple[Any, ...], out: Any) -> Any:
    """What `func` gave without numbers, its workspace as large as the real one.

    A CPU's fused LSTM asks its library: it is run, on a few samples where there are many, since
    from some number on each adds as much as the next.
    """
    if func is not _FUSED_LSTM or not torch.is_grad_enabled():
        return out
    *values, workspace = out
    steps, rows, width = args[0].shape
    options = tuple(tuple(option) if isinstance(option, list) else option for option in args[7:])
    asked = partial(_workspace_bytes, args[0].dtype, args[1].dtype, steps, width, options)
    nbytes = asked(min(rows, _MORE))
    if rows > _MORE:
        each = (nbytes - asked(_FEW)) / (_MORE - _FEW)
        nbytes += int((rows - _MORE) * each)
    return (*values, workspace.new_empty(nbytes))


@lru_cache(maxsize=64)
def _workspace_bytes(
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    steps: int,
    width: int,
    options: tuple[Any, ...],
    rows: int,
) -> int:
    hidden = options[3]
    weights = ((4 * hidden, width), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
    with _disable_current_modes(), torch.enable_grad():  # without gradients it keeps none
        given = [
            torch.zeros(steps, rows, width, dtype=dtype),
            *(torch.zeros(shape, dtype=weight_dtype) for shape in weights),
            *(torch.zeros(rows, hidden, dtype=dtype) for _ in range(2)),
        ]
        return int(_FUSED_LSTM(*given, *options)[-1].numel())
