"""A held layer that was to be computed again in the backward pass is so, although it is in eval.

transformers checkpoints its layers in train mode only, which a held one is never in. Where a
gradient crosses it, to something below that trains, it would keep all its activations.
"""

from __future__ import annotations

from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.standins import StandIn, stand_ins


@final
class Recomputed(StandIn):
    """Stands in for the forward of a transformers layer: checkpoints it, by the same function."""

    __slots__ = ()
    method = "forward"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module
        leaves = pytree.tree_leaves((args, kwargs))
        crossed = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
        if not (module.gradient_checkpointing and crossed and torch.is_grad_enabled()):
            return self.original(*args, **kwargs)
        # A cache would be written again when the layer is; the layers that train drop it likewise.
        if not getattr(module, "_can_checkpoint_with_cache", False):
            kwargs |= {name: None for name in ("past_key_values", "layer_past") if name in kwargs}
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        return module._gradient_checkpointing_func(partial(self.original, **kwargs), *args)


def recompute(module: nn.Module) -> None:
    """Let the module be computed again, if it is of the kind that asks its mode whether to."""
    if any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__):
        Recomputed(module, module.__dict__.get("forward")).put_on()


def recompute_no_more(module: nn.Module) -> None:
    """Leave it to the module's mode again."""
    for found in [s for s in stand_ins(module, "forward") if isinstance(s, Recomputed)]:
        found.take_off()
