"""Random numbers of a run: seeded for each epoch, kept for a resume, given back at the end."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash

_EPOCH_STRIDE = 1_000_003


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch, and Python and numpy for data sets that draw from those."""
    mixed = seed + _EPOCH_STRIDE * epoch
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)


def seed_batch(seed: int, epoch: int, batch: int, rank: int) -> None:
    """The same for one batch of several processes, in each of which it draws other numbers."""
    mixed = xxhash.xxh3_64_intdigest(f"{seed}\0{epoch}\0{batch}\0{rank}".encode()) >> 1
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
