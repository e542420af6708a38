"""What a step costs that begins at some depth, on stored features: all depths from one trace.

The model is traced and timed once with everything in training. What runs from the first module
above a line on is what a step on its features does, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from frostline.estimates.calibrating import OPERATIONS_SHARE, calibrated
from frostline.estimates.measuring import Stopwatch
from frostline.estimates.pricing import measure_prices
from frostline.estimates.results import Memory
from frostline.estimates.steps import Setup, state_bytes
from frostline.estimates.tracing import Op
from frostline.freezing import freezes_kept, thaw


@final
@dataclass(frozen=True, slots=True)
class DepthCost:
    """A step of what lies above a line, on features.

    Attributes:
        step_seconds: of a step of `batch_size` samples.
        forward_seconds: of it, and of validating as many.
        below_seconds: of the forward below the line, which stored features save.
        memory: of a step on features; `peak` is all that is kept for the backward pass, with all
            gradients, which are there at once at worst.
    """

    step_seconds: float
    forward_seconds: float
    below_seconds: float
    memory: Memory


def costs_by_depth(
    setup: Setup,
    above: Sequence[Sequence[str]],
    feature_bytes: Sequence[int],
    *,
    seconds: float,
) -> tuple[list[DepthCost], float]:
    """What a step on stored features costs above each of some lines.

    Args:
        above: paths of all modules with parameters above each line.
        feature_bytes: of one sample there, as they are read.
        seconds: to spend, about, on timing; with 0 seconds are first guesses.
    Returns:
        Beside the costs the share of a processor core that this thread had while timing.
    Raises:
        ConfigError: the model's step cannot be traced, as `estimate`.
    """
    model = setup.model
    with torch.random.fork_rng(devices=()), freezes_kept(model):
        thaw(model, "all")
        trace = setup.trace()
        watch = Stopwatch()
        prices = measure_prices(
            trace.ops, optimizer=setup.optimizer, seconds=seconds * OPERATIONS_SHARE
        )
        prices = calibrated(prices, setup, trace, seconds * (1 - OPERATIONS_SHARE))
        watch.stop()
        whole = setup.memory(trace)
    forward = [op for op in trace.ops if op.during == "forward"]
    first = {op.layer: op.turn for op in reversed(forward)}
    found = []
    for paths, nbytes in zip(above, feature_bytes, strict=True):
        begins = _first_turn(paths, forward, trace.paths)
        gradients = [size for name, size in trace.gradients.items() if _is_in(name, paths)]
        saved = sum(
            size for layer, size in enumerate(trace.saved) if first.get(layer, -1) >= begins
        )
        ahead = sum(prices.of(op) for op in forward if op.turn >= begins)
        back = sum(prices.of(op) for op in trace.ops[len(forward) :] if op.turn >= begins)
        memory = Memory(
            weights=whole.weights,
            buffers=whole.buffers,
            batch=nbytes * setup.batch_size,
            gradients=sum(gradients),
            state=state_bytes(setup.optimizer, gradients),
            saved=saved,
            peak=saved + sum(gradients),
        )
        below = sum(prices.of(op) for op in forward if op.turn < begins)
        step = ahead + back + prices.of_optimizer(gradients)
        found.append(DepthCost(step, ahead, below, memory))
    return found, watch.core_share


def _first_turn(paths: Sequence[str], ops: Iterable[Op], names: Sequence[str]) -> int:
    """The first turn of the forward pass in which one of these modules or what is in it runs."""
    inside = {place for place, name in enumerate(names) if _is_in(name, paths)}
    return min((op.turn for op in ops if op.layer in inside), default=len(names))


def _is_in(name: str, paths: Iterable[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
