"""Random initial values that depend on a seed alone; the caller's generator stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from torch's CPU generator as seeded by `seed` inside the block; restore it afterwards.

    `None` draws from the caller's generator, as plain torch does. Layers are made on the CPU
    and moved, so the values do not depend on the device they end up on.
    """
    if seed is None:
        yield
        return
    # `torch.manual_seed` would reseed every accelerator as well, which `devices=[]` does not save.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
