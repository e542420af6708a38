"""What torch.export follows a model under, so that it may, and does no more than is asked of it."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.config
import torch.utils.checkpoint
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._prims_common import suggest_memory_format


@contextmanager
def followable() -> Iterator[None]:
    """For export: nothing checkpoints, and nothing is done that nobody here asks for.

    Reentrant checkpoints run without gradients, and export (2.15) would keep it so. What it warns
    of and logs is no matter of the user's. And a fifth of its time, of MobileNetV2 half, went into
    the stack of each operation, collections of garbage among a million objects, sizes that are told
    here at once, and the question whether there is CUDA: a thousand times, each time of the driver
    where Lightning was imported.
    """
    disabled, collects = logging.root.manager.disable, gc.isenabled()
    has_cuda = torch.cuda.is_available()
    with (
        warnings.catch_warnings(action="ignore"),
        _updated(vars(torch.utils.checkpoint), {"CheckpointFunction": _Unchecked}),
        _updated(vars(torch.cuda), {"is_available": lambda: has_cuda}),
        _updated(vars(fx.config), {"do_not_emit_stack_traces": True}),  # torch 2.9 has none
        _updated(decomposition_table, _SIZES),
    ):
        logging.disable(logging.CRITICAL)
        gc.disable()
        try:
            yield
        finally:
            logging.disable(disabled)
            if collects:
                gc.enable()


# What an operation gives, in the form of its values alone; torch's own rules take ten operations on
# symbols for these.
def _itself(x: Tensor, *_: object, **__: object) -> Tensor:
    return x


def _normed(x: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=suggest_memory_format(x))
    return out, x.new_empty(0), x.new_empty(0)  # no statistics of the batch


_ATEN = torch.ops.aten
_SIZES: dict[Any, Callable[..., Any]] = {
    _ATEN._native_batch_norm_legit_no_training.default: _normed,
    **{
        getattr(_ATEN, name).default: _itself
        for name in ("relu_", "hardtanh_", "silu_", "hardswish_", "hardsigmoid_", "leaky_relu_")
    },
}


@contextmanager
def _updated(table: dict[Any, Any], values: Mapping[Any, Any]) -> Iterator[None]:
    """What the table has of these is another in the block."""
    former = {key: table[key] for key in values if key in table}
    table.update({key: values[key] for key in former})
    try:
        yield
    finally:
        table.update(former)


class _Unchecked:
    @staticmethod
    def apply(function: Any, _preserve: bool, *inputs: Any) -> Any:
        return function(*inputs)
