"""Rows of a tensor held as they are, bit for bit, while its other rows train.

Zeroed gradients do not hold rows: weight decay, momentum and Adam's state move them all the same.
A hold keeps a copy of the rows (this is its memory: their bytes, and nothing for the other rows),
zeroes their gradients as these are accumulated, so that clipping does not count them, and puts
the rows back after each step of any `torch.optim.Optimizer` that has the tensor among its
parameters. Before each step the rows are compared with the copy: what something else wrote into
them is an error, not silently written over.

Out of reach are optimizers that move copies of their own (master weights, flat shards); what they
write back is found at the next proof.
"""

from __future__ import annotations

from frostline.row_holds.holding import (
    check_holdable,
    clear_gradient,
    held,
    held_numel,
    held_rows,
    hold,
    holds_of,
)
from frostline.row_holds.kept import Kept, kept_within, taken

__all__ = [
    "Kept",
    "check_holdable",
    "clear_gradient",
    "held",
    "held_numel",
    "held_rows",
    "hold",
    "holds_of",
    "kept_within",
    "taken",
]
