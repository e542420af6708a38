"""Any data a user may hand over -> batches of an epoch, in an order that can be replayed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, final

import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from frostline.data.dataset import ImageDataset
from frostline.data.loaders import GivenBatches, as_pair, holds_batches
from frostline.data.ordered import count_threads, ordered_map
from frostline.data.targets import class_targets
from frostline.errors import ConfigError, DataError
from frostline.world import ALONE, World

_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step takes.

    Attributes:
        inputs: whatever the model takes, with the batch as first dimension.
        targets: class indices, int64 `(batch,)`.
        names: what to call each sample in messages: a path, or `sample 17`.
    """

    inputs: Any
    targets: Tensor
    names: tuple[str, ...]


class Batches(Protocol):
    """Data that can be gone through epoch by epoch; `len()` is the batches of an epoch."""

    def __len__(self) -> int: ...

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        ...

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, counted from 0; asking again gives the same ones.

        Those before batch `start` are passed over in the call itself, at no more cost than it
        takes: random numbers drawn for them are drawn before the first batch is asked for. Close
        it when it is left before its end, so that its threads end too.
        """
        ...


def make_batches(
    data: object,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    threads: int | None = None,
) -> Batches:
    """Batches of `data`.

    No sample is dropped: the last batch holds what is left, be it one sample. Where Frostline
    makes the order, it depends on `seed` and the epoch only.

    Args:
        data: an `ImageDataset`, decoded in threads up to 2 batches ahead; a `TensorDataset` of
            inputs and targets, gathered without a loop; any other dataset of (input, target),
            loaded in the calling thread; a `DataLoader` or another re-iterable of
            (inputs, targets) batches, which keeps its own batch size and order.
        batch_size: samples in a batch.
        shuffle: a new order every epoch; else the order of the data.
        seed: of the order.
        threads: decoding threads for an `ImageDataset`; by default one for each core, at most 16.
    Raises:
        ConfigError: `batch_size` or `threads` is less than 1.
        DataError: `data` is a one-shot iterator, has no length, is empty or does not hold pairs.
    """
    if batch_size < 1:
        raise ConfigError(f"asked for batches of {batch_size} samples. Use 1 or more.")
    workers = count_threads(threads)
    if isinstance(data, DataLoader | IterableDataset) or not _is_dataset(data):
        return _Given(GivenBatches(data))
    order = Order(_count(data), batch_size, shuffle, seed)
    if isinstance(data, ImageDataset):
        return _ImageBatches(data, order, workers)
    if isinstance(data, TensorDataset):
        return _TensorBatches(data, order)
    return _ItemBatches(data, order)


def epoch_order(count: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """Indices of `count` samples in the order of one epoch, int64 `(count,)`.

    Depends on the arguments alone; torch's global generator is neither read nor moved.
    """
    if not shuffle:
        return torch.arange(count)
    mixed = xxhash.xxh3_64_intdigest(f"{seed}\0{epoch}".encode()) >> 1
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))


@dataclass(frozen=True, slots=True)
class Order:
    """Which samples make up which batch of this process.

    Several processes share each epoch: every step takes `batch_size` samples for each of them, so
    that together they see every sample once.
    """

    samples: int
    batch_size: int
    shuffle: bool
    seed: int
    world: World = ALONE

    def __len__(self) -> int:
        left_over = max(0, self.samples - self.world.rank)  # for who comes late there may be none
        return -(-left_over // (self.batch_size * self.world.size))

    def epoch(self, epoch: int, *, start: int = 0) -> list[Tensor]:
        """The indices of each batch from number `start` on."""
        order = epoch_order(self.samples, shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        rank, size = self.world.rank, self.world.size
        whole = self.batch_size * size
        firsts = range(start * whole, self.samples - rank, whole)
        return [order[first : first + whole][rank::size] for first in firsts]


class _Ordered:
    """What all data with an order of our making share."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @property
    def samples(self) -> int:
        return self._order.samples


@final
class _ImageBatches(_Ordered):
    def __init__(self, data: ImageDataset, order: Order, threads: int) -> None:
        super().__init__(order)
        self._data = data
        self._threads = threads

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        batches = [indices.tolist() for indices in self._order.epoch(epoch, start=start)]
        every = [index for indices in batches for index in indices]
        loaded = ordered_map(
            partial(self._data.load, epoch=epoch),
            every,
            threads=self._threads,
            ahead=_BATCHES_AHEAD * self._order.batch_size,
        )
        with closing(loaded):
            for indices in batches:
                inputs, labels = zip(*(next(loaded) for _ in indices), strict=True)
                names = tuple(self._data.names[index] for index in indices)
                yield Batch(torch.stack(inputs), torch.tensor(labels), names)


@final
class _TensorBatches(_Ordered):
    def __init__(self, data: TensorDataset, order: Order) -> None:
        super().__init__(order)
        if len(data.tensors) != 2:
            raise DataError(
                f"the TensorDataset has {len(data.tensors)} tensors. Give it two: inputs, targets."
            )
        self._inputs, targets = data.tensors
        self._targets = class_targets(targets, len(targets), "the TensorDataset")

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        for indices in self._order.epoch(epoch, start=start):
            # Laid out as single samples are when stacked, whatever the strides of the whole:
            # kernels for other layouts give other last bits.
            inputs = self._inputs[indices].contiguous()
            yield Batch(inputs, self._targets[indices], _numbered(indices))


@final
class _ItemBatches(_Ordered):
    def __init__(self, data: Any, order: Order) -> None:
        super().__init__(order)
        self._data = data
        as_pair(data[0], f"item 0 of the {type(data).__name__}")

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        what = type(self._data).__name__
        for indices in self._order.epoch(epoch, start=start):
            items = [as_pair(self._data[i], f"item {i} of the {what}") for i in indices.tolist()]
            names = _numbered(indices)
            try:
                inputs, targets = default_collate(items)
            except (RuntimeError, TypeError, ValueError, KeyError) as error:
                raise DataError(
                    f"{names[0]} to {names[-1]} of this batch do not fit together: {error}. "
                    "Make all items alike, or give a DataLoader with its own collate_fn."
                ) from error
            yield Batch(inputs, class_targets(targets, len(items), f"the {what}"), names)


@final
class _Given:
    """Batches that were made elsewhere."""

    def __init__(self, given: GivenBatches) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    @property
    def samples(self) -> int:
        return self._given.samples

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        given = self._given.epoch(epoch)
        for _ in islice(given, start):
            pass
        return self._named(given, start)

    def _named(
        self, given: Iterator[tuple[Any, Tensor]], start: int
    ) -> Generator[Batch, None, None]:
        for number, (inputs, targets) in enumerate(given, start):
            names = tuple(f"sample {place} of batch {number}" for place in range(len(targets)))
            yield Batch(inputs, targets, names)


def _is_dataset(data: object) -> bool:
    """Whether `data` is indexed sample by sample; a list of batches is not."""
    if isinstance(data, Dataset):
        return True
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed and not holds_batches(data)


def _count(data: object) -> int:
    count = len(data) if isinstance(data, Sized) else None
    if not count:
        found = "does not say how many samples it holds" if count is None else "holds no samples"
        raise DataError(f"the {type(data).__name__} {found}. Give it a __len__ above 0.")
    return count


def _numbered(indices: Tensor) -> tuple[str, ...]:
    return tuple([f"sample {index}" for index in indices.tolist()])
