"""Held batch norms keep their statistics when something sets them back to compute them anew.

`torch.optim.swa_utils.update_bn` and weight averaging of trainers reset every batch norm of a
model, and let passes in train mode fill it again. A held norm stays in eval, so that nothing
would fill it. While it is held, two instance attributes stand in for methods of its class, as
`Hold` does for `train`: `reset_running_stats` does nothing, and `register_buffer`, through which
torch assigns to a buffer (`norm.running_mean = ...`), passes over the values of a reset. Both go
along through `copy.deepcopy` and `torch.save` of the whole module.
"""

from __future__ import annotations

import weakref
from typing import final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_COUNTER = "num_batches_tracked"
_RESET = {"running_mean": 0.0, "running_var": 1.0}


def keep_statistics(module: nn.Module) -> None:
    """Have the module's statistics pass over resets, if it is one of torch's norms."""
    if isinstance(module, _NormBase):
        module.__dict__.setdefault("reset_running_stats", _nothing)
        module.__dict__.setdefault("register_buffer", _Registration(module))


def release_statistics(module: nn.Module) -> None:
    """Have them follow resets again."""
    if module.__dict__.get("reset_running_stats") is _nothing:
        del module.__dict__["reset_running_stats"]
    if isinstance(module.__dict__.get("register_buffer"), _Registration):
        del module.__dict__["register_buffer"]


def _nothing() -> None:
    """Stands in for `reset_running_stats`."""


@final
class _Registration:
    """Stands in for `module.register_buffer`."""

    __slots__ = ("_count", "_module", "_passed")

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._passed: dict[str, Tensor] = {}
        self._count: Tensor | None = None  # of batches, since trainers zero the counter in place

    def __call__(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        module = self._target()
        if tensor is not None and _is_reset(name, tensor):
            counter = module._buffers.get(_COUNTER)
            self._count = None if counter is None else counter.clone()
            self._passed[name] = tensor
            return
        if name == _COUNTER and self._passed:
            passed, self._passed = self._passed, {}
            if tensor is module._buffers.get(name) and tensor is not None:
                tensor.copy_(tensor if self._count is None else self._count)
                return
            for other, values in passed.items():  # no reset: load_state_dict(assign=True)
                nn.Module.register_buffer(module, other, values)
        nn.Module.register_buffer(module, name, tensor, persistent)

    def __deepcopy__(self, memo: dict[int, object]) -> _Registration:
        module = self._target()
        copied = memo.get(id(module), module)
        assert isinstance(copied, nn.Module)
        return _Registration(copied)

    def __reduce__(self) -> tuple[type[_Registration], tuple[nn.Module]]:
        return _Registration, (self._target(),)

    def _target(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise ReferenceError("the module of this hold is gone")
        return module


def _is_reset(name: str, tensor: Tensor) -> bool:
    value = _RESET.get(name)
    return value is not None and not tensor.is_meta and bool((tensor == value).all())
