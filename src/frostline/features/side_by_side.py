"""Batches loaded and computed side by side on a CPU, each by one thread from file to features.

Decoding beside a forward that spreads over all cores makes both wait at every operation's barrier.
One thread a batch has no barriers: measured here, 400 photos through AlexNet in bfloat16 take two
thirds of the time. Not for plain float32, whose last bits may depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TypeVar

import torch

from frostline.data import count_threads, ordered_map
from frostline.features.computing import Computing
from frostline.tuning import PLAIN

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_worth_it(compute: Computing) -> bool:
    """Whether batches are better computed one to a thread than one over all threads."""
    cores = torch.get_num_threads()
    on_cpu = compute.device.type == "cpu" and compute.tuned.form != PLAIN
    return on_cpu and 1 < cores <= count_threads(None)


def side_by_side(
    work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Generator[_Result, None, None]:
    """`work(item)` for each item, in their order; within it torch uses one thread.

    Torch's number of threads is as before when this ends.
    """
    cores, here = torch.get_num_threads(), threading.local()

    def alone(item: _Item) -> _Result:
        if not hasattr(here, "is_set"):
            torch.set_num_threads(1)  # of this thread; for threads yet to come it is put back
            here.is_set = True
        return work(item)

    try:
        with closing(ordered_map(alone, items, threads=cores, ahead=cores)) as results:
            yield from results
    finally:
        torch.set_num_threads(cores)
