"""A few real steps of a few samples, by which the seconds of operations timed alone are scaled.

Within a step an operation finds its arguments in the caches or does not, and its result goes to
memory that the process has or that the system must hand out; alone it is otherwise. Over eight
networks the sums of operations were 0.6 to 2.5 times a step's seconds. Steps of fewer samples set
most of that right.

A step of all samples then takes in proportion to one of a few, or less where its operations alone
do: products with large weights are slower by the sample the fewer there are (a ViT-B/16 by 1.3 at
two). Where they do more, it is memory that the system hands out for each, and a step keeps its own,
unless its tensors are too large for that (a ResNet-50 in evaluation by 1.5 at 16 samples).
"""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod

import torch

from frostline.devices import device_of
from frostline.estimates.measuring import STEP_ERRORS
from frostline.estimates.pricing import Prices, timed_too
from frostline.estimates.steps import Setup
from frostline.estimates.tracing import Op, Pass, Shaped, StepTrace

OPERATIONS_SHARE = 1 / 3  # of the time for calibrating; the rest is for real steps
_STEPS = 10  # by the sum of operations; of a real step it may be less than half
_REPEATS = 16
_UNKNOWN_BYTES = 2 << 30
_KEPT_BYTES = 32 << 20  # beyond it glibc asks the system for each tensor anew, in a step too


def calibrated(prices: Prices, setup: Setup, trace: StepTrace, seconds: float) -> Prices:
    """The prices by which a step of the model as it is frozen now takes what real ones say.

    Weights, buffers, gradients, modes and random numbers are put back. As many samples are taken
    as `seconds`, about, and half of the free memory are enough for; where the step does not run,
    or there is no room for two, the operations alone must do.

    Args:
        trace: of the step for which an estimate is wanted.
    """
    alone, batch_size = setup.step(trace, prices), setup.batch_size
    if not alone.seconds or not seconds:
        return prices
    rows = int(batch_size * seconds / (_STEPS * alone.seconds))
    rows = max(min(rows, batch_size), min(2, batch_size))  # a norm may need two samples
    fewer = trace if rows == batch_size else setup.trace(rows)
    needed = setup.memory(fewer)
    if needed.total - needed.weights > _free_bytes(device_of(setup.model)) / 2:
        return prices
    try:
        real = setup.measure(rows, repeats=_REPEATS, within=seconds)
    except STEP_ERRORS:  # training it says what is wrong
        return prices
    if rows < batch_size:
        prices = timed_too(prices, fewer.ops, seconds=seconds * OPERATIONS_SHARE)
    pairs = list(zip(fewer.ops, trace.ops, strict=False))
    took: dict[Pass, float] = {"forward": real.forward_seconds, "backward": real.backward_seconds}
    scale = {}
    for during, spent in took.items():
        own = [(op, more) for op, more in pairs if op.during == during]
        share = sum(
            prices.of(op) if _is_handed_out(op, more) else prices.of_fewer(op, more)
            for op, more in own
        )
        scale[during] = _ratio(spent, max(share, sum(prices.of(op) for op, _ in own)))
    optimizer = _ratio(real.optimizer_seconds, alone.optimizer_seconds)
    return replace(
        prices,
        scale=scale,
        optimizer_byte=prices.optimizer_byte * optimizer,
        optimizer_tensor=prices.optimizer_tensor * optimizer,
        measured_on=rows,
    )


def _is_handed_out(op: Op, more: Op) -> bool:
    """Whether on more samples the result is too large to be kept, and on fewer it is not."""
    return _written_bytes(op) <= _KEPT_BYTES < _written_bytes(more)


def _written_bytes(op: Op) -> int:
    given = (leaf for leaf in op.call.leaves if isinstance(leaf, Shaped))
    return op.nbytes - sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in given)


def _ratio(real: float, alone: float) -> float:
    return real / alone if alone else 1.0


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not known on this system
        return _UNKNOWN_BYTES
