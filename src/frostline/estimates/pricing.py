"""What operations cost on this machine: the dear ones are timed alone, the rest by their size.

An operation is replayed with the shapes, strides and dtypes that it has in the step, on memory of
its own, without the model and its numbers. The dearest distinct ones go first, until the time for
it is spent; the others take their number of operations and bytes at the rates that were seen.

Within a step an operation finds other things in the caches and takes its memory from another heap
than alone: `calibrating` sets that right.
"""

from __future__ import annotations

import statistics
import time
import timeit
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from frostline.estimates.measuring import clock, still_optimizer
from frostline.estimates.skeleton import READERS
from frostline.estimates.tracing import Call, Op, Pass, Shaped

# First guesses, by which it is decided what to time; rates that are seen take their place.
_FLOPS_PER_SECOND = 1e11
_BYTES_PER_SECOND = 1e10
_REPEATS = 5
_QUICK_SECONDS = 0.03  # an operation is repeated within so much time
_SMALL_SECONDS = 2e-5  # operations that take less by the guess are not timed
_PROBE_NUMBERS = 1 << 22


@final
@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of operations on one machine, with its present number of threads.

    Attributes:
        timed: of calls that were timed.
        factor: by which calls of an operation take longer than the first guess.
        overhead: of any operation: Python, dispatch and autograd.
        optimizer_byte: of an optimizer step, for each byte of the parameters.
        optimizer_tensor: of an optimizer step, for each parameter.
        scale: by which a pass takes longer than its operations alone.
        measured_on: samples of the real steps that gave the scale; 0 where none ran.
    """

    timed: Mapping[Call, float]
    factor: Mapping[str, float]
    overhead: float
    optimizer_byte: float
    optimizer_tensor: float
    scale: Mapping[Pass, float] = field(default_factory=lambda: {"forward": 1.0, "backward": 1.0})
    measured_on: int = 0

    def of(self, op: Op) -> float:
        """Seconds of one operation within a step."""
        found = 0.0 if op.is_view else self.timed.get(op.call)
        if found is None:
            found = _guess(op) * self.factor.get(str(op.call.func), self.factor[""])
        return (found + self.overhead) * self.scale[op.during]

    def of_fewer(self, op: Op, more: Op) -> float:
        """Seconds of an operation, from what the same one on more samples takes."""
        share = _guess(op) / _guess(more) if _guess(more) else 1.0
        return self.of(more) * share

    def of_optimizer(self, gradients: Iterable[int]) -> float:
        """Seconds of a step over parameters of so many bytes."""
        sizes = list(gradients)
        return sum(sizes) * self.optimizer_byte + len(sizes) * self.optimizer_tensor


def measure_prices(ops: Iterable[Op], *, optimizer: str, seconds: float = 2.0) -> Prices:
    """Time what the operations of a step cost here, within about `seconds`."""
    with torch.no_grad():
        overhead = _overhead()
        one = torch.zeros(_PROBE_NUMBERS, requires_grad=True)
        many = [torch.zeros(8, requires_grad=True) for _ in range(100)]
        byte = _optimizer_seconds(optimizer, [one]) / one.nbytes
        tensor = _optimizer_seconds(optimizer, many) / len(many)
        timed, factor = _timed(list(ops), time.perf_counter() + seconds, overhead)
    return Prices(timed, factor, overhead, byte, tensor)


def timed_too(prices: Prices, ops: Iterable[Op], *, seconds: float) -> Prices:
    """The same, with the dear ones of other operations timed within about `seconds`."""
    others = [op for op in ops if op.call not in prices.timed]
    with torch.no_grad():
        timed, _ = _timed(others, time.perf_counter() + seconds, prices.overhead)
    return replace(prices, timed={**prices.timed, **timed})


def between(first: Prices, last: Prices, share: float) -> Prices:
    """Prices of which so large a share is that of `first`, and the rest that of `last`.

    What both timed alone is the same; `measured_on` is the fewer samples.
    """

    def mixed(one: float, other: float) -> float:
        return share * one + (1 - share) * other

    return replace(
        first,
        timed={**first.timed, **last.timed},
        scale={during: mixed(own, last.scale[during]) for during, own in first.scale.items()},
        optimizer_byte=mixed(first.optimizer_byte, last.optimizer_byte),
        optimizer_tensor=mixed(first.optimizer_tensor, last.optimizer_tensor),
        measured_on=min(first.measured_on, last.measured_on),
    )


def _timed(
    ops: list[Op], until: float, overhead: float
) -> tuple[dict[Call, float], dict[str, float]]:
    counts = Counter(op.call for op in ops)
    one_of = {
        op.call: op
        for op in ops
        if not op.is_view and op.call.func not in READERS and _guess(op) > _SMALL_SECONDS
    }
    order = sorted(one_of.values(), key=lambda op: -_guess(op) * counts[op.call])
    found: dict[Call, float] = {}
    ratios: dict[str, list[float]] = defaultdict(list)
    for op in order:
        if time.perf_counter() > until:
            break
        with suppress(RuntimeError, NotImplementedError, TypeError, IndexError):
            found[op.call] = max(0.0, _replay(op.call) - overhead)
            ratio = found[op.call] / _guess(op)
            ratios[str(op.call.func)].append(ratio)
            ratios[""].append(ratio)
    return found, {name: statistics.median(some) for name, some in ({"": [1.0]} | ratios).items()}


def _guess(op: Op) -> float:
    return max(op.flops / _FLOPS_PER_SECOND, op.nbytes / _BYTES_PER_SECOND)


def _replay(call: Call) -> float:
    """Seconds of one call, the median of a few, after one to warm up."""
    args, kwargs = pytree.tree_unflatten([_real(leaf) for leaf in call.leaves], call.spec)
    times: list[float] = []
    while len(times) < 2 or (len(times) <= _REPEATS and sum(times) < _QUICK_SECONDS):
        start = clock()
        call.func(*args, **kwargs)
        times.append(clock() - start)
    return statistics.median(times[1:])


def _real(leaf: Any) -> Any:
    if not isinstance(leaf, Shaped):
        return leaf
    made = torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=leaf.device)
    # Zeros are valid indices and masks; numbers must be neither denormal nor infinite.
    return made.fill_(0.5) if leaf.dtype.is_floating_point else made.zero_()


def _overhead() -> float:
    """Seconds of an operation on next to nothing, as a step makes it: autograd included."""
    small = torch.ones(8, requires_grad=True)

    def run() -> None:
        value = small
        for _ in range(50):
            value = value + 1.0
        value.sum().backward()  # type: ignore[no-untyped-call]  # torch's own

    with torch.enable_grad():
        return statistics.median(timeit.repeat(run, number=1, repeat=5)) / 100


def _optimizer_seconds(name: str, parameters: list[Tensor]) -> float:
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    made = still_optimizer(name, parameters)
    return statistics.median(timeit.repeat(made.step, number=1, repeat=4)[1:])
