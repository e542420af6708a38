"""Kept in full while somebody else keeps it anyway, as bits from then on.

A ReLU cannot know, when it runs, whether its output will be kept: a trainable convolution behind it
keeps it, and then bits would come on top; a frozen one does not. So an alias of the output is
saved, which costs nothing while the output lives. If the output dies before the backward pass, and
nobody else holds its memory, the alias is turned into bits, in place and behind autograd's back.
PyTorch would hold the whole output in any case: nothing is ever kept that it would not.

The alias goes through `save_for_backward`, so whoever hooks saved tensors sees it (offloading moves
it in full), and autograd frees it as it frees all others. Checkpointing drops it, and when it
repeats the forward compares it with the first: there it stays as it is.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from frostline.backward.bits import is_dense, pack_where
from frostline.backward.recomputing import outer_hooks

Predicate = Callable[[Tensor], Tensor]


def is_packed(saved: Tensor) -> bool:
    """Whether what was saved has become bits."""
    return saved.dtype is torch.uint8


@final
class LatePacking:
    """Turns `alias` into bits when `output`, whose memory it shares, dies in the forward pass.

    It keeps neither alive, and must itself be kept for as long as it is to act.
    """

    __slots__ = ("__weakref__", "_alias", "_output", "_passes", "_stream", "_task")

    def __init__(self, output: Tensor, alias: Tensor, passes: Predicate) -> None:
        self._alias = weakref.ref(alias)
        self._passes = passes
        # In the backward pass an output dies because the operation behind is done with it: this
        # one's turn comes next. A forward inside a backward (checkpoints) has its own number.
        self._task = torch._C._current_graph_task_id()
        self._stream = torch.cuda.current_stream(output.device) if output.is_cuda else None
        me = weakref.ref(self)
        self._output = weakref.ref(output, lambda _: _died(me))

    def output_died(self) -> None:
        """Pack, unless nobody waits for the bits or somebody else holds the memory."""
        alias = self._alias()
        if alias is None or torch._C._current_graph_task_id() != self._task:
            return
        # Held by the alias, by the output that is about to go, and by what this line makes of it.
        if torch._C._storage_Use_Count(alias.untyped_storage()._cdata) > _ALONE:
            return
        stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with torch._C.DisableTorchFunction(), torch.no_grad(), stream:
            alias.data = pack_where(self._passes, alias)


def may_pack_late(output: Tensor) -> bool:
    """Whether bits of it could be laid out again, and nobody compares it with an earlier one."""
    hooks = outer_hooks()
    is_repeated = hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
    return is_dense(output) and not is_repeated


def _died(reference: weakref.ref[LatePacking]) -> None:
    packing = reference()
    if packing is not None and not sys.is_finalizing():
        packing.output_died()


def _count_when_alone() -> int:
    output = torch.empty(1)
    alias = output.detach()
    return int(torch._C._storage_Use_Count(alias.untyped_storage()._cdata))


_ALONE = _count_when_alone()
