"""A model that is looked at and left as it was: bits, gradients, modes, hooks, random numbers."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from frostline.fingerprints.parts import plain_parts

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
    modules = [_Attributes.of(module) for module in model.modules()]
    tensors = [_Content.of(tensor) for tensor in _tensors(model)]
    with _same_random_numbers(model):
        try:
            for tensor in tensors:
                tensor.set_aside()
            yield
        finally:
            for module in modules:
                module.restore()
            for tensor in tensors:
                tensor.restore()


@final
@dataclass(frozen=True, slots=True)
class _Attributes:
    """A module's own attributes, and what its containers hold, one level deep."""

    module: nn.Module
    values: dict[str, Any]
    contents: tuple[tuple[Any, Any], ...]
    tensors: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        values = dict(module.__dict__)
        contents = [(v, v.copy()) for v in values.values() if type(v) in _CONTAINERS]
        loose = [(v, v.detach().clone()) for v in values.values() if isinstance(v, Tensor)]
        return cls(module, values, tuple(contents), tuple(loose))

    def restore(self) -> None:
        own = self.module.__dict__
        for name in own.keys() - self.values.keys():
            del own[name]
        for name, value in self.values.items():
            if own.get(name, self) is not value:
                own[name] = value
        for container, before in self.contents:
            if not _holds_the_same(container, before):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(before)
        for tensor, before in self.tensors:
            _write_back(tensor, before)


@final
@dataclass(frozen=True, slots=True)
class _Content:
    """A parameter or buffer: its bits, switch, gradient and the hooks on its gradient."""

    tensor: Tensor
    bits: Tensor
    wanted: bool
    gradient: Tensor | None
    hooks: dict[int, Any]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        hooks = dict(_step_hooks(tensor) or {})
        gradient = tensor.grad if tensor.is_leaf else None
        return cls(tensor, tensor.detach().clone(), tensor.requires_grad, gradient, hooks)

    def set_aside(self) -> None:
        """Not even hooks are called, on one of which an optimizer may hang that steps at once."""
        if (hooks := _step_hooks(self.tensor)) is not None:
            hooks.clear()
        if self.tensor.is_leaf:
            self.tensor.grad = None

    def restore(self) -> None:
        if self.tensor.is_leaf:
            if self.tensor.requires_grad != self.wanted:
                self.tensor.requires_grad_(self.wanted)
            self.tensor.grad = self.gradient
        if (hooks := _step_hooks(self.tensor)) is not None:
            hooks.clear()
            hooks.update(self.hooks)
        _write_back(self.tensor, self.bits)


def _step_hooks(tensor: Tensor) -> dict[int, Any] | None:
    """Hooks that run once a gradient is there; autograd holds on to this very dict."""
    return tensor._post_accumulate_grad_hooks if tensor.is_leaf else None


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    """As engine.randomness keeps them, which stands on a higher floor."""
    places = {t.device.index for t in _tensors(model) if t.device.type == "cuda"}
    python, drawn = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(i for i in places if i is not None)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(drawn)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _holds_the_same(container: Any, before: Any) -> bool:
    if len(container) != len(before):
        return False
    if isinstance(container, dict):
        pairs = zip(container.items(), before.items(), strict=True)
        return all(a == b and v is w for (a, v), (b, w) in pairs)
    if isinstance(container, set):
        return bool(container == before)
    return all(a is b for a, b in zip(container, before, strict=True))


def _write_back(tensor: Tensor, before: Tensor) -> None:
    if not same_bits(tensor, before):
        # By `data`, since a tensor that autograd watches refuses to be written in place.
        tensor.data.copy_(before)


def same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Whether dtype, shape and every bit are the same, of whatever the tensors are made of."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    (kind, parts), (other_kind, others) = plain_parts(tensor, "it"), plain_parts(other, "it")
    shapes = [part.shape for part in parts] == [part.shape for part in others]
    return kind == other_kind and shapes and all(map(torch.equal, _bits(parts), _bits(others)))


def _bits(parts: list[Tensor]) -> Iterator[Tensor]:
    for part in parts:
        yield part.contiguous().flatten().view(torch.uint8)
