"""What a kernel keeps for its backward pass, and no fake tensor knows the size of."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

_FUSED_LSTM = torch.ops.aten.mkldnn_rnn_layer.default
_FEW, _MORE = 32, 64  # samples

# They read a workspace, and crash on one that the forward pass has not filled.
READERS = frozenset({torch.ops.aten.mkldnn_rnn_layer_backward.default})


def with_workspace(func: Any, args: tuple[Any, ...], out: Any) -> Any:
    """What `func` gave without numbers, its workspace as large as the real one.

    A CPU's fused LSTM asks its library: it is run, on a few samples where there are many, since
    from some number on each adds as much as the next.
    """
    if func is not _FUSED_LSTM or not torch.is_grad_enabled():
        return out
    *values, workspace = out
    rows = args[0].shape[1]
    nbytes = _workspace_bytes(args, min(rows, _MORE))
    if rows > _MORE:
        each = (nbytes - _workspace_bytes(args, _FEW)) / (_MORE - _FEW)
        nbytes += int((rows - _MORE) * each)
    return (*values, workspace.new_empty(nbytes))


def _workspace_bytes(args: tuple[Any, ...], rows: int) -> int:
    steps, _, width = args[0].shape
    options = (tuple(option) if isinstance(option, list) else option for option in args[7:])
    return _asked(args[0].dtype, args[1].dtype, (steps, rows, width), *options)


@lru_cache(maxsize=64)
def _asked(
    dtype: torch.dtype, weight_dtype: torch.dtype, size: tuple[int, ...], *options: Any
) -> int:
    rows, width, hidden = size[1], size[2], options[3]
    weights = ((4 * hidden, width), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
    lists = [list(option) if isinstance(option, tuple) else option for option in options]
    with _disable_current_modes(), torch.enable_grad():  # without gradients it keeps none
        given = [
            torch.zeros(size, dtype=dtype),
            *(torch.zeros(shape, dtype=weight_dtype) for shape in weights),
            *(torch.zeros(rows, hidden, dtype=dtype) for _ in range(2)),
        ]
        return int(_FUSED_LSTM(*given, *lists)[-1].numel())
