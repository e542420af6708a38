"""How many samples a pass takes at once, chosen by measuring where that can pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from frostline.tuning.realising import Realised
from frostline.tuning.timing import timed

_SIZES: Final = (16, 32, 64, 128)
_GAIN: Final = 0.95  # of the time per sample: a smaller gain is noise
_SHARE: Final = 1 / 16  # of the samples to come is what the measurements may compute


def choose_batch_size(
    run: Realised,
    samples: Sequence[Tensor],
    batch_size: int,
    *,
    planned_samples: int | None = None,
) -> int:
    """The quickest size per sample among 16 to 128 and `batch_size`.

    `batch_size` stays where there are fewer samples than it or than another size, where measuring
    would cost more than it can gain over `planned_samples`, and where nothing is clearly quicker.
    Sizes that do not fit into memory are left out.
    """
    given = len(samples[0])
    sizes = [batch_size, *(size for size in _SIZES if size != batch_size and size <= given)]
    cost = 2 * sum(sizes)
    if given < batch_size or (planned_samples is not None and cost > _SHARE * planned_samples):
        return batch_size
    best, best_seconds = batch_size, _seconds_per_sample(run, samples, batch_size)
    for size in sizes[1:]:
        seconds = _seconds_per_sample(run, samples, size)
        if seconds < _GAIN * best_seconds:
            best, best_seconds = size, seconds
    return best


def _seconds_per_sample(run: Realised, samples: Sequence[Tensor], size: int) -> float:
    inputs = [tensor[:size] for tensor in samples]
    try:
        timed(run, inputs)  # makes the kernels of this shape
        return timed(run, inputs)[1] / size
    except (MemoryError, RuntimeError):  # torch's out-of-memory error is a RuntimeError
        return float("inf")
