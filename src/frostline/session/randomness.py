"""Random numbers of a run: seeded for each epoch, kept for a resume, given back at the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar, final

import numpy as np
import torch
import xxhash
from torch import Tensor

from frostline.world import World, bits_of_first

_Item = TypeVar("_Item")
_OF_ALL = -1  # no process's number: what all draw alike
_EPOCH_STRIDE = 1_000_003


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch, and Python and numpy for data sets that draw from those."""
    _seed(epoch_seed(seed, epoch))


def epoch_seed(seed: int, epoch: int) -> int:
    """What the random numbers of an epoch, counted from 0, are seeded with."""
    return seed + _EPOCH_STRIDE * epoch


def seeded_apart(
    given: Iterator[_Item],
    *,
    seed: int,
    epoch: int,
    first: int,
    rank: int,
    begun: Callable[[], None],
) -> Iterator[_Item]:
    """The batches of an epoch from number `first` on, with random numbers of each process's own.

    Each batch begins with a seed of its own, so that none needs a state to go on from. What an
    epoch draws with its first batch, as the order of a loader, is the same in all processes.

    Args:
        begun: called when the epoch has drawn that.
    """
    try:
        for number in count(first):
            if number:
                _seed(_mixed(seed, epoch, number, rank))
            batch = next(given, None)
            if batch is None:
                return
            if not number:
                begun()
                _seed(_mixed(seed, epoch, number, rank))
            yield batch
    finally:
        _seed(_mixed(seed, epoch, 0, _OF_ALL))


def _mixed(*parts: int) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode()) >> 1


def _seed(mixed: int) -> None:
    if torch.accelerator.is_available():
        torch.manual_seed(mixed)
    else:  # which would keep each call, with its stack, for a GPU that never comes (torch 2.15)
        torch.default_generator.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)


@final
class DrawnAlike:
    """The random numbers of torch that one process would draw, in several that each draw them.

    Attributes:
        state: of the generators that the model draws by.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.state: dict[str, Tensor] = {}

    def begin(self, device: torch.device) -> None:
        """Take up the present state, which is the same in all processes."""
        self.state = _drawing_state(device)

    def go_on(self, device: torch.device, state: dict[str, Tensor] | None) -> None:
        """Take up a state, or of a run in one process the present one."""
        self.state = state or _drawing_state(device)
        if self._world.size == 1:
            _set_drawing_state(self.state, device)

    @contextmanager
    def drawing(self, device: torch.device, whole: int) -> Iterator[None]:
        """In it torch draws from this state; afterwards from its own again.

        Args:
            whole: samples of the batch in all processes.
        """
        own = _drawing_state(device)
        _set_drawing_state(self.state, device)
        try:
            yield
        finally:
            self.state = _drawing_state(device)
            _set_drawing_state(own, device)
        if whole % self._world.size:  # who has fewer samples may have drawn less
            self.state = {n: bits_of_first(self._world, t) for n, t in self.state.items()}


def _drawing_state(device: torch.device) -> dict[str, Tensor]:
    found = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _set_drawing_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


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
