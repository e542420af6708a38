"""Batches that come ready-made: a DataLoader, or anything that can be iterated again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, final

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from frostline.data.targets import class_targets
from frostline.errors import DataError


@final
class GivenBatches:
    """A re-iterable of (inputs, targets) batches, checked, with its lengths.

    Raises:
        DataError: it ends after one pass, cannot be iterated, or has no length or no batches.
    """

    def __init__(self, data: object) -> None:
        self._data: Any = data
        self._what = type(data).__name__
        self._samples: int | None = None
        _refuse_one_shot(data, self._what)
        self._count = _length(data, self._what)

    def __len__(self) -> int:
        return self._count

    @property
    def samples(self) -> int:
        """Samples in an epoch; where no one knows it, the first call goes through the data once."""
        if self._samples is None:
            known = _known_samples(self._data)
            self._samples = sum(len(targets) for _, targets in self) if known is None else known
        return self._samples

    def epoch(self, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        """The batches as given; a sampler that can be told the epoch is told.

        Raises:
            DataError: a batch is no pair, or its targets are no class indices.
        """
        for sampler in _samplers(self._data):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        empty = True
        for batch in self:
            empty = False
            yield batch
        if empty:
            raise DataError(
                f"the {self._what} gave no batches in epoch {epoch}; it may be good for one pass "
                "only. Give a Dataset, a DataLoader or a list of batches."
            )

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for number, batch in enumerate(self._data):
            what = f"batch {number} of the {self._what}"
            inputs, targets = as_pair(batch, what)
            yield inputs, class_targets(targets, batch_length(targets), what)


def as_pair(item: object, what: str) -> tuple[Any, Any]:
    """`item` as (inputs, targets).

    Raises:
        DataError: it is no tuple or list of two; names `what` and what was found.
    """
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        found = f"a mapping with {', '.join(map(str, list(item)[:5]))}"
    elif isinstance(item, tuple | list):
        found = f"a {type(item).__name__} of {len(item)}"
    else:
        found = f"a {type(item).__name__}"
    raise DataError(f"{what} is {found}, not a pair. Return (inputs, target) from it.")


def holds_batches(data: Any) -> bool:
    """Whether the first entry of a sequence is a batch, known by targets that have a length."""
    if not len(data):
        return False
    try:
        first = data[0]
    except (KeyError, TypeError, NotImplementedError):
        return True  # no entry 0: not indexed by number
    if not isinstance(first, tuple | list) or len(first) != 2:
        return False
    return batch_length(first[1]) > 0


def batch_length(targets: object) -> int:
    """Number of targets; 0 for a single one."""
    if isinstance(targets, str) or getattr(targets, "ndim", 1) == 0:
        return 0
    return len(targets) if hasattr(targets, "__len__") else 0


def _refuse_one_shot(data: object, what: str) -> None:
    if isinstance(data, Iterator):
        raise DataError(
            f"the {what} can be gone through once only, and training takes many epochs. "
            "Give a Dataset, a DataLoader or a list of batches."
        )
    if isinstance(data, IterableDataset):
        raise DataError(
            f"the {what} gives single samples. Wrap it: DataLoader(data, batch_size=32)."
        )
    if not hasattr(data, "__iter__"):
        raise DataError(
            f"a {what} is no data set. Give a Dataset, a DataLoader or a list of batches."
        )


def _length(data: Any, what: str) -> int:
    try:
        count = len(data)
    except TypeError as error:
        raise DataError(
            f"the {what} does not say how many batches an epoch has. Give it a __len__."
        ) from error
    if not count:
        raise DataError(f"the {what} holds no batches. Give it some.")
    return int(count)


def _known_samples(data: object) -> int | None:
    """Samples of an epoch as far as a DataLoader tells."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return None
    if data.batch_size is None:  # batches come from the user's batch sampler or dataset
        return None
    count = len(data.sampler) if isinstance(data.sampler, Sized) else None
    if count is not None and data.drop_last:
        count -= count % data.batch_size
    return count


def _samplers(data: object) -> Sequence[Any]:
    """Whatever may want to know the epoch: samplers, and loaders that pass it on themselves."""
    if not isinstance(data, DataLoader):
        return (data,)
    return (data, data.sampler, data.batch_sampler)
