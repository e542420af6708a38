"""What torch.compile calls and does not follow; imported where it compiles, with all of dynamo."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.compiler.disable(reason="a cut looks its model over")  # type: ignore[untyped-decorator, no-untyped-call]  # torch's own
def untraced(work: Callable[[nn.Module], list[Tensor]], model: nn.Module) -> list[Tensor]:
    """`work(model)`, anew at each call."""
    return work(model)
