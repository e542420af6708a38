"""Models of which each process holds a part: DTensors, as `fully_shard` (torch's FSDP2) makes them.

What needs a whole tensor gathers it, one at a time, and lets it go: a process never has more of a
model than its part and one tensor. So all processes make the same calls in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from frostline.world import ALONE, World, world_here
from frostline.wrappers import reshard, units


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor; where nobody imported these there is none, and that takes long."""
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def is_shard(tensor: Any) -> bool:
    """Whether the processes hold parts of the tensor: the same answer on each of them.

    One row on two processes is a shard on the first as well, which has all of it.
    """
    if not is_distributed(tensor):
        return False
    mesh = tensor.device_mesh
    return any(
        mesh.size(dim) > 1 and not placement.is_replicate()
        for dim, placement in enumerate(tensor.placements)
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes hold parts of any of its parameters."""
    reshard(model)
    return any(map(is_shard, model.parameters()))


def world_of(model: nn.Module) -> World:
    """The processes that hold a model's parts; `ALONE` where this one has all of it."""
    return world_here() if is_sharded(model) else ALONE


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without gradient history: gathered, where the processes hold parts of it."""
    value: Any = tensor.detach()
    if not is_distributed(value):
        return tensor.detach()
    found: Tensor = value.full_tensor() if is_shard(value) else value.to_local()
    return found


def placed_like(values: Tensor, tensor: Any) -> Tensor:
    """`values` as `tensor` is: sharded where that is, on its device then, or plain.

    Args:
        values: all of them; or sharded, be it otherwise.
    """
    found: Any = values.detach()
    if not is_distributed(tensor):
        return whole(found)
    if is_distributed(found) and _place(found) == _place(tensor):
        return values.detach()
    from torch.distributed.tensor import DTensor, Replicate

    mesh, found = tensor.device_mesh, whole(found).to(tensor.device)
    # Each process has all values already, so none are sent: it keeps its part.
    every = DTensor.from_local(found, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return every.redistribute(mesh, tensor.placements)


def precisions(model: nn.Module) -> dict[str, str]:
    """Path -> in what a sharded part is computed, where that is not in its parameters' dtype."""
    found = {}
    sharded = {id(unit) for unit in units(model)}
    for path, module in model.named_modules():
        if id(module) in sharded:
            policy: Any = module._get_fsdp_state()._mp_policy  # torch 2.9 to 2.15
            if policy.param_dtype or policy.output_dtype:
                casts = policy.cast_forward_inputs
                found[path] = f"{policy.param_dtype} {policy.output_dtype} {casts}"
    return found


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that its author gave it: `fully_shard` puts one of its own before that."""
    kind = type(module)
    is_unit = "FSDPModule" in {base.__name__ for base in kind.__bases__}
    return kind.__bases__[1] if is_unit else kind


@contextmanager
def cut_short(model: nn.Module) -> Iterator[None]:
    """A forward of the model in the block may raise: the next one finds no trace of it.

    Gradients are as before then; torch's own way back drops them.
    """
    reshard(model)
    sharded = _outermost(model)
    gradients = [(p, p.grad) for p in model.parameters()] if sharded else []
    try:
        yield
    except BaseException:
        for unit in sharded if can_be_cut_short(model) else ():
            unit.reset_iter_state()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        raise
    finally:
        reshard(model)


def can_be_cut_short(model: nn.Module) -> bool:
    """Whether the model finds back from a forward that raised; sharded by torch 2.9 it does not."""
    return all(hasattr(unit, "reset_iter_state") for unit in units(model))


def _outermost(model: nn.Module) -> list[Any]:
    """The units that are in no other one."""
    inside = {id(m) for unit in units(model) for m in unit.modules() if m is not unit}
    return [unit for unit in units(model) if id(unit) not in inside]


def _place(tensor: Any) -> tuple[Any, Any]:
    return tensor.device_mesh, tuple(tensor.placements)
