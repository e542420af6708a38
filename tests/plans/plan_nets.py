"""A tower of blocks with a head, and everything that a check must leave as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """`floors` blocks with norms (`floor0` the lowest) and a head: one stage each."""

    def __init__(self, floors: int = 3, *, norms: bool = True, bias: bool = True) -> None:
        super().__init__()
        for number in range(floors):
            layers: list[nn.Module] = [nn.Linear(4, 4, bias=bias)]
            self.add_module(f"floor{number}", nn.Sequential(*layers, *self._norm(norms)))
        self.head = nn.Linear(4, 2)

    @staticmethod
    def _norm(wanted: bool) -> list[nn.Module]:
        return [nn.BatchNorm1d(4)] if wanted else []

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def whole_state(model: nn.Module) -> list[object]:
    """Bits, gradient switches, gradients, modes and instance attributes, to compare with `==`."""
    tensors = [
        (name, t.detach().clone().view(-1).tolist(), t.requires_grad, t.grad)
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    modules = [(n, m.training, sorted(vars(m))) for n, m in model.named_modules()]
    return [tensors, modules, torch.get_rng_state().tolist()]
