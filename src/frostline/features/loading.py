"""What a DataLoader needs to read features: an order by epoch, and rows that stay one batch."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator, Sequence
from typing import Any, final

from torch import Tensor
from torch.utils.data import Sampler

from frostline.data import Order


@final
class Rows(Sequence[Any]):
    """The samples of a batch one by one; nothing is taken apart until it is asked for.

    Attributes:
        batch: all of them, as they were gathered.
    """

    def __init__(self, batch: Any, count: int) -> None:
        self.batch = batch
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._count:
            raise IndexError(f"row {place} of {self._count}")
        return _row(self.batch, place)


def _row(part: Any, place: int) -> Any:
    if isinstance(part, dict):
        # No dict: of dicts transformers' Trainer drops what no forward's signature names.
        return UserDict({name: _row(value, place) for name, value in part.items()})
    if isinstance(part, tuple):
        return tuple(_row(value, place) for value in part)
    assert isinstance(part, Tensor)
    return part[place]


@final
class EpochSampler(Sampler[int]):
    """The order of an epoch by its seed and number: rows, those of later views behind the first.

    Epochs follow each other each time it is gone through; `set_epoch` says which is next.
    """

    def __init__(self, order: Order, views: int) -> None:
        self.epoch = 0
        self._order, self._views = order, views

    def __len__(self) -> int:
        return self._order.samples

    def __iter__(self) -> Iterator[int]:
        first = self.epoch % self._views * self._order.samples
        batches = self._order.epoch(self.epoch)
        self.epoch += 1
        for batch in batches:
            yield from (batch + first).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Go on with this epoch, counted from 0."""
        self.epoch = epoch
