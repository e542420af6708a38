"""A model that is looked at and left as it was: bits, gradients, modes, hooks, random numbers."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.fingerprints.parts import same_bits

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever the block does with `model`, afterwards it is as it was before.

    Kept are the bits of parameters and buffers, their gradients and switches, the attributes of
    every module (modes, hooks, whatever a forward counts or caches) with what lists and dicts in
    them hold, and the random numbers of torch, Python and numpy. It takes a copy of the weights;
    tensors whose bits did not move are not written to, so a graph made before stays good.

    Within the block no parameter has a gradient, nor a hook that would act on one.
    """
    tensors = [*model.parameters(), *model.buffers()]
    places = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices=places), ExitStack() as undone:
        undone.callback(random.setstate, random.getstate())
        undone.callback(np.random.set_state, np.random.get_state())
        for tensor in tensors:
            undone.callback(_set_aside(tensor))
        for module in model.modules():  # undone before the tensors, which it may have lost
            undone.callback(_remember(module))
        yield


def _remember(module: nn.Module) -> Callable[[], None]:
    """What gives the module its own attributes again, and what its containers hold, one level deep.

    Tensors among them are those that are neither parameters nor buffers.
    """
    own = module.__dict__
    before = dict(own)
    contents = [(v, v.copy()) for v in before.values() if type(v) in _CONTAINERS]
    tensors = [(v, v.detach().clone()) for v in before.values() if isinstance(v, Tensor)]

    def restore() -> None:
        for name in own.keys() - before.keys():
            del own[name]
        own.update(before)
        for container, content in contents:
            _refill(container, content)
        for tensor, bits in tensors:
            _write_back(tensor, bits)

    return restore


def _set_aside(tensor: Tensor) -> Callable[[], None]:
    """Take the gradient and the hooks on it off a parameter or buffer; gives what undoes all.

    Not even hooks are called, on one of which an optimizer may hang that steps at once.
    """
    bits, wanted = tensor.detach().clone(), tensor.requires_grad
    gradient = tensor.grad if tensor.is_leaf else None
    hooks = dict(_hooks(tensor))
    _refill(_hooks(tensor), {})
    if tensor.is_leaf:
        tensor.grad = None

    def restore() -> None:
        if tensor.is_leaf:
            if tensor.requires_grad != wanted:
                tensor.requires_grad_(wanted)
            tensor.grad = gradient
        _refill(_hooks(tensor), hooks)
        _write_back(tensor, bits)

    return restore


def _hooks(tensor: Tensor) -> dict[int, Any]:
    """Hooks that run once a gradient is there; autograd holds on to this very dict."""
    found = tensor._post_accumulate_grad_hooks if tensor.is_leaf else None
    return {} if found is None else found


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def _write_back(tensor: Tensor, bits: Tensor) -> None:
    if not same_bits(tensor, bits):
        # By `data`, since a tensor that autograd watches refuses to be written in place.
        tensor.data.copy_(bits)
