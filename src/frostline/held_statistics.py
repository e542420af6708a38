"""Held batch norms keep their statistics when something sets them back to compute them anew.

`torch.optim.swa_utils.update_bn` and weight averaging of trainers reset every batch norm of a
model, and let passes in train mode fill it again. A held norm stays in eval, so that nothing
would fill it. While it is held, two instance attributes stand in for methods of its class, as
`Hold` does for `train`: `reset_running_stats` does nothing, and `register_buffer`, through which
torch assigns to a buffer (`norm.running_mean = ...`), passes over the values of a reset. Both go
along through `copy.deepcopy` and `torch.save` of the whole module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from frostline.standins import StandIn, stand_ins

_COUNTER = "num_batches_tracked"
_RESET = {"running_mean": 0.0, "running_var": 1.0}


def keep_statistics(module: nn.Module) -> None:
    """Have the module's statistics pass over resets, if it is one of torch's norms."""
    if isinstance(module, _NormBase):
        for kind in (_NoReset, _Registration):
            kind(module, module.__dict__.get(kind.method)).put_on()


def release_statistics(module: nn.Module) -> None:
    """Have them follow resets again."""
    for kind in (_NoReset, _Registration):
        for one in stand_ins(module, kind.method):
            if isinstance(one, kind):
                one.take_off()


@final
class _NoReset(StandIn):
    """Stands in for `module.reset_running_stats`, and does nothing."""

    __slots__ = ()
    method = "reset_running_stats"

    def __call__(self) -> None:
        """Leave the statistics."""


@final
class _Registration(StandIn):
    """Stands in for `module.register_buffer`."""

    __slots__ = ("_count", "_passed")
    method = "register_buffer"

    def __init__(self, module: nn.Module, shadowed: Callable[..., Any] | None) -> None:
        super().__init__(module, shadowed)
        self._passed: dict[str, Tensor] = {}
        self._count: Tensor | None = None  # of batches, since trainers zero the counter in place

    def __call__(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        buffers = self.module._buffers
        if tensor is not None and _is_reset(name, tensor):
            counter = buffers.get(_COUNTER)
            self._count = None if counter is None else counter.clone()
            self._passed[name] = tensor
            return
        if name == _COUNTER and self._passed:
            passed, self._passed = self._passed, {}
            if tensor is buffers.get(name) and tensor is not None:
                tensor.copy_(tensor if self._count is None else self._count)
                return
            for other, values in passed.items():  # no reset: load_state_dict(assign=True)
                self.original(other, values)
        self.original(name, tensor, persistent)


def _is_reset(name: str, tensor: Tensor) -> bool:
    value = _RESET.get(name)
    return value is not None and not tensor.is_meta and bool((tensor == value).all())
