"""A Transformer encoder with held layers packs padded batches only where all of it takes them.

`nn.TransformerEncoder` goes by the mode and the gradients of its first layer alone, and packs the
batch into a nested tensor that no layer in train mode, or with gradients to record, can take. So
with the first layer held and a later one training, its forward would fail (torch 2.15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


@final
@dataclass(frozen=True, slots=True, eq=False)
class WhereWhole:
    """Stands in for `encoder.use_nested_tensor`, which the forward asks; its truth is of now."""

    layers: nn.ModuleList

    def __bool__(self) -> bool:
        if any(module.training for module in self.layers.modules()):
            return False
        if _get_current_dispatch_mode() is not None:  # as fake tensors, of which none is nested
            return False
        wants = any(parameter.requires_grad for parameter in self.layers.parameters())
        return not (wants and torch.is_grad_enabled())


def packing(model: nn.Module) -> list[str]:
    """Paths of the encoders that pack padded batches in evaluation."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder)
        and module.__dict__.get("use_nested_tensor") not in (None, False)
    ]


def pack_where_whole(encoder: nn.TransformerEncoder, on: bool) -> None:
    """Let it pack only where all its layers take it, or whenever it would by itself."""
    own = encoder.__dict__.get("use_nested_tensor")
    if on and own is True:
        encoder.__dict__["use_nested_tensor"] = WhereWhole(encoder.layers)
    elif not on and isinstance(own, WhereWhole):
        encoder.use_nested_tensor = True
