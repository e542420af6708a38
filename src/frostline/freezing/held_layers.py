"""What held layers need besides eval mode, where the code of others goes by the mode alone.

*Statistics.* `torch.optim.swa_utils.update_bn` and weight averaging of trainers reset every batch
norm of a model, and let passes in train mode fill it again. A held norm stays in eval, so that
nothing would fill it. While it is held, two instance attributes stand in for methods of its class,
as `Hold` does for `train`: `reset_running_stats` does nothing, and `register_buffer`, through which
torch assigns to a buffer (`norm.running_mean = ...`), passes over the values of a reset. Both go
along through `copy.deepcopy` and `torch.save` of the whole module.

*Instance norm.* torch 2.9 writes into its running statistics in eval mode too: the mean over the
batch of what they were, which moves their last bits (not from batches of 2, 4, 8). A held one
computes on copies.

*Nesting.* `nn.TransformerEncoder` goes by the mode and the gradients of its first layer alone, and
packs a padded batch into a nested tensor that no layer in train mode, or with gradients to record,
can take. So with the first layer held and a later one training, its forward would fail (torch
2.15): it packs only where all of its layers take it.

*Recomputing.* transformers checkpoints its layers in train mode only, which a held one is never in.
Where a gradient crosses it, to something below that trains, it would keep all its activations: it
is computed again in the backward pass all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode

from frostline.standins import StandIn

_COUNTER = "num_batches_tracked"
_RESET = {"running_mean": 0.0, "running_var": 1.0}


def equip(module: nn.Module) -> None:
    """Let a held module keep its statistics and be computed again, if it is of a kind that does."""
    if isinstance(module, _NormBase):
        _NoReset.put(module)
        _Registration.put(module)
    if isinstance(module, _InstanceNorm) and writes_in_eval():
        _OnCopies.put(module)
    if any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__):
        Recomputed.put(module)


def strip(module: nn.Module) -> None:
    """Leave all that to the module's mode again."""
    for kind in (_NoReset, _Registration, _OnCopies, Recomputed):
        kind.remove(module)


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


@cache
def writes_in_eval() -> bool:
    """Whether this torch writes into an instance norm's statistics in eval mode."""
    with torch.inference_mode(False):  # where tensors count what is written to them
        mean, var = torch.ones(1, device="cpu"), torch.ones(1, device="cpu")
        before = mean._version
        instance_norm(torch.ones(1, 1, 2, device="cpu"), mean, var, use_input_stats=False)
        return mean._version != before


@final
class _OnCopies(StandIn):
    """Stands in for `module._apply_instance_norm`: statistics are read, never written."""

    __slots__ = ()
    method = "_apply_instance_norm"

    def __call__(self, inputs: Tensor) -> Tensor:
        module: Any = self.module
        if module.training or module.running_mean is None:
            output: Tensor = self.original(inputs)
            return output
        mean, var = module.running_mean.clone(), module.running_var.clone()
        by_batch = not module.track_running_stats  # switched off once there were statistics
        return instance_norm(
            inputs, mean, var, module.weight, module.bias, by_batch, eps=module.eps
        )


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
