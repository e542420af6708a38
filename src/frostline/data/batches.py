"""The batches of an epoch, in an order that can be replayed: of samples, or made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, starmap
from typing import Any, Protocol, final, overload

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from frostline.data.samples import Samples, batched, class_targets, some_targets
from frostline.errors import DataError, a_type
from frostline.world import ALONE, World

_CHANNELS = (1, 3, 4)  # of a picture
# Batches of like length are made out of so many at a time, and out of a quarter of an epoch at
# most: little more padding than by sorting all, and other batches in each epoch. As Trainers of
# transformers group by length.
_POOLED_BATCHES = 50

AsTargets = Callable[[object, int, str], Tensor]
"""Raw targets, their number and what they are of -> the tensor that a loss takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step takes.

    Attributes:
        inputs: whatever the model takes, with the batch as first dimension.
        targets: `(batch, ...)`, as the task takes them: class indices are int64 `(batch,)`.
        names: what to call each sample in messages: a path, or `sample 17`.
        is_spare: whether it is of another process, lent to this one, for which the batch has no
            sample: a forward is made with it, and it counts nowhere.
        whole: samples of the batch in all processes, where there are several.
    """

    inputs: Any
    targets: Tensor
    names: Sequence[str]
    is_spare: bool = False
    whole: int = 0


@final
class NamesAt(Sequence[str]):
    """Names at places, looked up when they are asked for: few batches are named anywhere."""

    __slots__ = ("_every", "_places")

    def __init__(self, every: Sequence[str], places: Tensor) -> None:
        self._every, self._places = every, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(map(self._every.__getitem__, self._places[index].tolist()))
        return self._every[int(self._places[index])]


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
    """Which samples make up which batch, and which of them are this process's.

    The batches are those of one process, however many share them: process `r` of `n` takes the
    samples `r`, `r + n`, `r + 2n` and so on of each.

    Attributes:
        lengths: of the samples, where batches are padded to their longest: those of like length
            then go together where the order is shuffled. Which do is drawn anew for each epoch.
    """

    samples: int
    batch_size: int
    shuffle: bool
    seed: int
    world: World = ALONE
    lengths: Sequence[int] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> list[Tensor]:
        """The indices of this process's part of each batch from number `start` on.

        Of a batch that has none for it, those of one sample that is another process's.
        """
        rank, size = self.world.rank, self.world.size
        own = [whole[rank::size] for whole in self.wholes(epoch, start=start)]
        if (own and not len(own[-1])) or self.batch_size < size:
            firsts = [whole[:1] for whole in self.wholes(epoch, start=start)]
            return [part if len(part) else one for part, one in zip(own, firsts, strict=True)]
        return own

    def is_spare(self, number: int) -> bool:
        """Whether a batch, counted from 0, has no sample for this process."""
        return self.world.rank >= self.count(number)

    def count(self, number: int) -> int:
        """Samples of a whole batch, counted from 0."""
        return min(self.batch_size, self.samples - number * self.batch_size)

    def wholes(self, epoch: int, *, start: int = 0) -> list[Tensor]:
        """The indices of each whole batch from number `start` on."""
        order = epoch_order(self.samples, shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        if self.shuffle and self.lengths is not None and len(set(self.lengths)) > 1:
            order = self._alike(order, torch.tensor(self.lengths), self.batch_size, epoch)
        firsts = range(start * self.batch_size, self.samples, self.batch_size)
        return [order[first : first + self.batch_size] for first in firsts]

    def _alike(self, order: Tensor, lengths: Tensor, whole: int, epoch: int) -> Tensor:
        """The order with samples of like length in a batch; what is left over stays last."""
        count = len(order) // whole
        pooled = max(1, min(_POOLED_BATCHES, count // 4))
        pools = torch.split(order[: count * whole], pooled * whole)
        sorted_pools = [pool[lengths[pool].argsort(stable=True)] for pool in pools]
        turns = epoch_order(count, shuffle=True, seed=self.seed, epoch=epoch)
        batches = torch.cat(sorted_pools).view(count, whole)[turns]
        return torch.cat([batches.flatten(), order[count * whole :]])


@final
@dataclass(eq=False)
class SampleBatches:
    """The batches of samples, in an order of our making."""

    _samples: Samples
    _order: Order
    _threads: int
    _as_targets: AsTargets
    _targets: Tensor | None = None  # unless they come with their samples

    def __post_init__(self) -> None:
        given = self._samples
        if holds_all(given.targets):
            every = some_targets(given.targets)
            self._targets = self._as_targets(every, len(given), given.what)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def samples(self) -> int:
        return self._order.samples

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        samples, batches = self._samples, self._order.epoch(epoch, start=start)
        first = (epoch % samples.views if samples.views else epoch) * len(samples)
        rows = [(places + first).tolist() for places in batches]
        with closing(samples.in_batches(rows, threads=self._threads)) as loading:
            for number, places in enumerate(batches, start):
                loaded = next(loading)
                names = tuple(map(samples.name, places.tolist()))
                inputs = batched(samples, loaded, names)
                if self._targets is not None:
                    targets = self._targets[places]
                else:
                    raw = some_targets(samples.targets, places)
                    targets = self._as_targets(raw, len(places), samples.what)
                order = self._order
                yield Batch(inputs, targets, names, order.is_spare(number), order.count(number))


@final
class GivenBatches:
    """A re-iterable of (inputs, targets) batches, checked, with its lengths.

    Several processes go through the same batches, each of which takes its rows of them.

    Raises:
        DataError: it ends after one pass, cannot be iterated, or has no length or no batches; or
            a sampler gives each process other samples.
    """

    def __init__(
        self, data: Any, as_targets: AsTargets = class_targets, world: World = ALONE
    ) -> None:
        self._data, self._as_targets, self._world = data, as_targets, world
        self._what = type(data).__name__
        self._samples: int | None = None
        if isinstance(data, Iterator):
            raise DataError(
                f"the {self._what} can be gone through once only, and training takes many epochs. "
                "Give a Dataset, a DataLoader or a list of batches."
            )
        if isinstance(data, IterableDataset):
            raise DataError(
                f"the {self._what} gives single samples. Wrap it: DataLoader(data, batch_size=32)."
            )
        if not hasattr(data, "__iter__"):
            raise DataError(
                f"{a_type(data)} is no data set. Give a Dataset, a DataLoader or a list of batches."
            )
        try:
            self._count = len(self._data)
        except TypeError as error:
            raise DataError(
                f"the {self._what} does not say how many batches an epoch has. Give it a __len__."
            ) from error
        if not self._count:
            raise DataError(f"the {self._what} holds no batches. Give it some.")
        if world.size > 1 and isinstance(getattr(data, "sampler", None), DistributedSampler):
            raise DataError(
                f"the {self._what} has a DistributedSampler, and processes share its batches here "
                "already. Give the loader without it; its batch size is that of all processes."
            )

    def __len__(self) -> int:
        return self._count

    @property
    def samples(self) -> int:
        """Samples in an epoch; where no one knows it, the first call goes through the data once."""
        if self._samples is None:
            known = _known_samples(self._data)
            self._samples = sum(len(t) for _, t in self._pairs()) if known is None else known
        return self._samples

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        """The batches as given; a sampler that takes the epoch is given it.

        Raises:
            DataError: there are none, a batch is no pair, or its targets are no targets.
        """
        data, is_loader = self._data, isinstance(self._data, DataLoader)
        for sampler in (data, data.sampler, data.batch_sampler) if is_loader else (data,):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        given = self._pairs()
        passed = sum(1 for _ in islice(given, start))
        return self._named(given, epoch, passed)

    def _named(
        self, given: Iterator[tuple[Any, Tensor]], epoch: int, start: int
    ) -> Generator[Batch, None, None]:
        number = start
        for number, (inputs, targets) in enumerate(given, start + 1):
            names = tuple(f"sample {i} of batch {number - 1}" for i in range(len(targets)))
            whole = Batch(inputs, targets, names)
            yield whole if self._world.size == 1 else self._own_rows(whole)
        if not number:
            raise DataError(
                f"the {self._what} gave no batches in epoch {epoch}; it may be good for one pass "
                "only. Give a Dataset, a DataLoader or a list of batches."
            )

    def _own_rows(self, whole: Batch) -> Batch:
        """What of a batch is this process's, after a look at whether all were given the same."""
        world, count = self._world, len(whole.targets)
        digest = xxhash.xxh3_64_intdigest(whole.targets.contiguous().view(torch.uint8).numpy().data)
        seen = torch.tensor([digest >> 32, digest % 2**32, count], dtype=torch.float64)
        if not torch.equal(world.sum(seen), seen * world.size):
            raise DataError(
                f"the {self._what} gives other batches in each of the {world.size} processes. Let "
                "their order depend on torch's generator alone, which is the same in all."
            )
        is_spare = count <= world.rank
        chosen = slice(0, 1) if is_spare else slice(world.rank, None, world.size)
        inputs = some_rows(whole.inputs, chosen)
        return Batch(inputs, whole.targets[chosen], whole.names[chosen], is_spare, count)

    def _pairs(self) -> Generator[tuple[Any, Tensor], None, None]:
        for number, batch in enumerate(self._data):
            what = f"batch {number} of the {self._what}"
            inputs, targets = as_pair(batch, what)
            yield inputs, self._as_targets(targets, batch_length(targets), what)


def some_rows(inputs: Any, chosen: slice | Tensor) -> Any:
    """The chosen samples of a batch of inputs."""
    parts = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map_only(Tensor, lambda tensor: tensor[chosen], parts)


def as_pair(item: object, what: str) -> tuple[Any, Any]:
    """`item` as (inputs, targets); what is no tuple or list of two is refused as `what`."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    found = a_type(item)
    if isinstance(item, Mapping):
        found = f"a mapping with {', '.join(map(str, list(item)[:5]))}"
    elif isinstance(item, tuple | list):
        found = f"{found} of {len(item)}"
    raise DataError(f"{what} is {found}, not a pair. Return (inputs, target) from it.")


def holds_batches(data: Any) -> bool:
    """Whether a sequence of (inputs, targets) pairs holds batches, and not samples.

    Inputs and targets of a batch have one first axis, its samples. Those of a sample may be as
    long by chance, as a picture of 3 channels with 3 targets, or always, as a series with a target
    for each step; where the shapes allow for that, a shorter last pair tells batches.

    Raises:
        DataError: the pairs may be either.
    """
    if not len(data):
        return False
    try:
        entries = data if isinstance(data, list | tuple) else [data[0], data[len(data) - 1]]
    except (KeyError, TypeError, NotImplementedError):
        return True  # not indexed by number
    pairs = [entry for entry in entries if isinstance(entry, tuple | list) and len(entry) == 2]
    if not pairs or pairs[0] is not entries[0] or not all(starmap(_may_be_batch, pairs)):
        return False
    count, *others = (batch_length(targets) for _, targets in pairs)
    if not others or (set(others[:-1]) <= {count} and others[-1] < count):
        return True
    inputs, targets = _shapes(pairs[0][0]), _shapes(pairs[0][1]) or [(count,)]
    if inputs and all(i in targets or (len(i) == 3 and count in _CHANNELS) for i in inputs):
        raise DataError(
            f"the {type(data).__name__} holds pairs of inputs {list(inputs[0])} with {count} "
            f"targets, each of which may be one sample or a batch of {count}. With "
            "torch.utils.data, give samples as a data set, Subset(pairs, range(len(pairs))), or "
            "batches as a loader, DataLoader(batches, batch_size=None)."
        )
    return True


def _may_be_batch(inputs: Any, targets: Any) -> bool:
    found = {shape[0] for shape in _shapes(inputs)} or {batch_length(inputs)}
    return found == {batch_length(targets)} != {0}


def _shapes(given: Any) -> list[tuple[int, ...]]:
    """Of the tensors in it."""
    parts = list(given.values()) if isinstance(given, Mapping) else given
    tensors = [part for part in tree_leaves(parts) if isinstance(part, Tensor | np.ndarray)]
    return [tuple(part.shape) for part in tensors if part.ndim]


def holds_all(targets: object) -> bool:
    """Whether targets are all there, and not loaded when they are asked for."""
    return isinstance(targets, Tensor | np.ndarray | list | tuple)


def batch_length(targets: object) -> int:
    """Number of targets; 0 for a single one."""
    if isinstance(targets, str) or getattr(targets, "ndim", 1) == 0:
        return 0
    return len(targets) if hasattr(targets, "__len__") else 0


def _known_samples(data: object) -> int | None:
    """Samples of an epoch as far as a DataLoader says; of batches of the user's own it does not."""
    if not isinstance(data, DataLoader):
        return None
    size, sampler = data.batch_size, data.sampler
    if not size or not isinstance(sampler, Sized):
        return None
    return len(sampler) - len(sampler) % size if data.drop_last else len(sampler)
