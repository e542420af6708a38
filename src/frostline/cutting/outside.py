"""What a forward goes by that no graph has: draws of Python and NumPy, generators, counts.

A cut would go on for ever with what there was when it was made.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import BuiltinMethodType, MethodType
from typing import Any

import torch
from torch import nn

from frostline.units import some_of

# What a generator is called, how to read its state, and how to give it one.
_Source = tuple[str, Callable[[], Any], Callable[[Any], object]]

_NUMBERS = (bool, int, float)


def writes_into(model: nn.Module, weights: Sequence[str]) -> str:
    """What is said where a forward writes into its weights, and what to do."""
    names = some_of(weights, most=3)
    return (
        f"the forward of {type(model).__name__} writes into its weights: {names}. Where it does so "
        "in the first call of a mode alone, call it in that mode before the freeze, and ask again."
    )


def frozen_versions(model: nn.Module) -> dict[str, int]:
    """How often each frozen parameter was written to."""
    frozen = ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    return {name: p._version for name, p in frozen if not p.is_inference()}


def written_since(before: Mapping[str, int], model: nn.Module) -> tuple[str, ...]:
    """Those that were written to since."""
    now = dict(model.named_parameters())
    return tuple(n for n, version in before.items() if n in now and now[n]._version != version)


def draws_of(model: nn.Module) -> dict[str, bytes]:
    """Where each generator stands that a forward of the model may draw from."""
    states = {name: read() for name, read, _ in _sources(model)}
    return {
        name: state.numpy().tobytes() if isinstance(state, torch.Tensor) else pickle.dumps(state)
        for name, state in states.items()
    }


@contextmanager
def draws_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block draws, afterwards each generator stands where it stood."""
    before = [(write, read()) for _, read, write in _sources(model)]
    try:
        yield
    finally:
        for write, state in before:
            write(state)


@contextmanager
def numbers_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block's forwards count, afterwards numbers in attributes are as before.

    Not those of a module that anything else was put aside in: they may say what that is.
    """
    before = [(own, dict(own)) for own in map(vars, model.modules())]
    try:
        yield
    finally:
        for own, known in before:
            numbers = {n: value for n, value in known.items() if type(value) in _NUMBERS}
            others = known.keys() - numbers.keys()
            if own.keys() == known.keys() and all(own[n] is known[n] for n in others):
                own.update(numbers)


def _sources(model: nn.Module) -> Iterator[_Source]:
    yield "Python's random", random.getstate, random.setstate
    known = {id(_owner(random.random)), id(torch.default_generator)}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        yield "numpy.random", numpy.random.get_state, numpy.random.set_state
        known.add(id(_owner(numpy.random.random)))
    for title, value in (*_attributes(model), *_globals(model)):
        owner = _owner(value)
        kind = type(owner)  # not by isinstance, which asks an object that may be a lazy one
        if id(owner) in known or issubclass(kind, random.SystemRandom):  # which has no state
            continue
        known.add(id(owner))
        if issubclass(kind, random.Random) and kind.getstate is random.Random.getstate:
            yield title, owner.getstate, owner.setstate
        elif issubclass(kind, torch.Generator) or (
            numpy is not None and issubclass(kind, numpy.random.RandomState)
        ):
            yield title, owner.get_state, owner.set_state
        elif numpy is not None and issubclass(kind, numpy.random.Generator):
            yield title, *_bits(owner.bit_generator)


def _owner(value: Any) -> Any:
    """The generator whose method it may be, as `random.Random(0).random`."""
    return value.__self__ if type(value) in (BuiltinMethodType, MethodType) else value


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            yield f"{path}.{name}" if path else name, value


def _globals(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What stands beside the classes of the model's own layers, in their files."""
    of_kinds = {type(module): module.forward for module in model.modules()}
    scopes = {
        id(scope): scope
        for kind, forward in of_kinds.items()
        if kind.__module__.partition(".")[0] != "torch"
        if (scope := getattr(forward, "__globals__", None)) is not None
    }
    for scope in scopes.values():
        for name, value in list(scope.items()):
            yield f"{scope.get('__name__', '?')}.{name}", value


def _bits(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return lambda: generator.state, lambda state: setattr(generator, "state", state)
