"""DistributedDataParallel wrappers that live around a model, also where only that is at hand.

A wrapper notes what trains when it is made. What is thawed later is never averaged, and each
process trains a model of its own, silently. It leaves no trace on the model (torch 2.15), so it is
looked for among all objects, and only in a process that has joined others.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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
    if _strays(model):
        gc.collect()
    return _strays(model)


def _strays(model: nn.Module) -> list[str]:
    own = {id(parameter) for parameter in model.parameters()}
    return [
        name
        for wrapper in _around(model)
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
    kinds = set(_kinds(DistributedDataParallel))
    return [
        thing
        for thing in gc.get_objects()
        # By type, since isinstance asks strangers' proxies. One whose making failed has no reducer.
        if type(thing) in kinds
        and "reducer" in thing.__dict__
        and any(id(parameter) in own for parameter in thing.parameters())
    ]


def _kinds(kind: type[DistributedDataParallel]) -> Iterator[type]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
