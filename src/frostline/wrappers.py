"""What is put around a model: torch.compile, DataParallel, DistributedDataParallel, `fully_shard`.

DistributedDataParallel records what trains when it is made. What is thawed later is never averaged,
and each process trains a model of its own, silently. It leaves no trace on the model (torch 2.15),
so it is looked for among all objects, and only in a process that has joined others.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from frostline.errors import ConfigError, a_type


def check_is_model(given: object) -> None:
    """Raises ConfigError for what is no module."""
    if not isinstance(given, nn.Module):
        raise ConfigError(f"a model is a torch.nn.Module, got {a_type(given)}. Pass the model.")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, DataParallel and DistributedDataParallel wrappers."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """The `torch.compile`, DataParallel and DistributedDataParallel wrappers, the outer first."""
    while (inner := _inside(model)) is not None:
        yield model
        model = inner


def units(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was applied to, the outer first."""
    known = sys.modules.get("torch.distributed.fsdp")  # takes a second to import
    if known is None:
        return []
    return [module for module in model.modules() if isinstance(module, known.FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Let each sharded part have its own parameters again, not what a forward gathered of them.

    The root of `fully_shard` keeps what it gathered until a backward, as other tensors under the
    same names: whoever freezes these, or gives them to an optimizer, changes nothing that lasts.
    """
    for unit in units(model):
        unit.reshard()


def live_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """Those that hold a parameter of `model`."""
    if _around(model):
        gc.collect()  # one that nobody has any more may not be gone yet
    return _around(model)


def reduced(wrapper: DistributedDataParallel) -> set[int]:
    """`id()` of the parameters whose gradients the wrapper averages (torch 2.15)."""
    buckets: Any = wrapper.reducer._get_zeros_like_grad_buckets()
    return {id(parameter) for bucket in buckets for parameter in bucket.parameters()}


def strays(model: nn.Module) -> list[str]:
    """Parameters that a living wrapper took for frozen and train, or waits for and are frozen."""
    own = {id(parameter) for parameter in model.parameters()}
    return [
        name
        for wrapper in live_wrappers(model)
        for averaged in [reduced(wrapper)]
        for name, parameter in wrapper.module.named_parameters()
        if id(parameter) in own
        and name not in wrapper.parameters_to_ignore
        and parameter.requires_grad != (id(parameter) in averaged)
        and (parameter.requires_grad or not wrapper.find_unused_parameters)
    ]


def _around(model: nn.Module) -> list[DistributedDataParallel]:
    if not (dist.is_available() and dist.is_initialized()):
        return []
    own = {id(parameter) for parameter in model.parameters()}
    return [
        thing
        for thing in gc.get_objects()
        # By type, since isinstance asks strangers' proxies. One whose making failed has no reducer.
        if DistributedDataParallel in type(thing).__mro__
        and "reducer" in thing.__dict__
        and any(id(parameter) in own for parameter in thing.parameters())
    ]


def _inside(model: nn.Module) -> nn.Module | None:
    """What `model` wraps, if it is a wrapper."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return cast("nn.Module", model.module)
    # torch.compile's machinery takes a second to import, and is there if a compiled model is.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    is_compiled = compiler is not None and isinstance(model, compiler.OptimizedModule)
    return cast("nn.Module", model._orig_mod) if is_compiled else None
