"""Random numbers of a run: seeded for each epoch, kept for a resume, given back at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash

_Item = TypeVar("_Item")
_OF_ALL = -1  # no process's number: what all draw alike
_EPOCH_STRIDE = 1_000_003


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch, and Python and numpy for data sets that draw from those."""
    mixed = seed + _EPOCH_STRIDE * epoch
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)


def seeded_apart(
    given: Iterator[_Item], *, seed: int, epoch: int, first: int, rank: int
) -> Iterator[_Item]:
    """The batches of an epoch from number `first` on, with random numbers of each process's own.

    Each batch begins with a seed of its own, so that none needs a state to go on from. What an
    epoch draws with its first batch, as the order of a loader, is the same in all processes.
    """
    try:
        for number in count(first):
            if number:
                _seed(seed, epoch, number, rank)
            batch = next(given, None)
            if batch is None:
                return
            if not number:
                _seed(seed, epoch, number, rank)
            yield batch
    finally:
        _seed(seed, epoch, 0, _OF_ALL)


def _seed(*parts: int) -> None:
    mixed = xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode()) >> 1
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)


def random_state() -> dict[str, Any]:
    """The present state, of tensors and plain data only."""
    version, internal, gauss = random.getstate()
    drawn: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]  # of old and new
    kind, keys, *rest = drawn
    return {
        "torch": torch.get_rng_state(),
        "devices": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["devices"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
