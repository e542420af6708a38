"""The one door for data: whatever a user hands over becomes `Samples`, decided in `open_data`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from contextlib import closing
from functools import cached_property
from itertools import repeat
from os import PathLike
from typing import Any, TypeGuard, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from frostline.data.batches import (
    AsTargets,
    Batch,
    Batches,
    GivenBatches,
    Order,
    SampleBatches,
    as_pair,
    holds_all,
    holds_batches,
    some_rows,
)
from frostline.data.image_samples import ImageSamples
from frostline.data.ordered import count_threads
from frostline.data.samples import (
    Samples,
    class_targets,
    content_id,
    inputs_of,
    lengths_of,
    some_targets,
)
from frostline.data.views import ImageDataset
from frostline.errors import ConfigError, DataError, a_type
from frostline.world import ALONE, World

# Samples of a data set of the user's own that are asked for, and how often each: a change made in
# half of all cases is missed once in 8 ** 16 times, one made in a tenth once in 800.
_TRIED = 16
_TIMES = 4
_TARGETS_AT_MOST = 2000  # that are loaded with their inputs to know targets before training
_MEMBERS = [n for n in [*Samples.__annotations__, *vars(Samples)] if not n.startswith("_")]


def open_data(data: object, *, views: int | None = None) -> Samples:
    """`data` as samples.

    Args:
        data: an `ImageDataset`; a `TensorDataset` of inputs and targets; any other data set, list
            or tuple of (input, target) pairs; `Samples` of your own; or batches that are made
            elsewhere: a `DataLoader`, a list of (inputs, targets) batches, or anything else that
            gives the same number of them again and again. Pairs of a list are batches where
            inputs and targets have one first axis in each.
        views: fixed random views of each picture; by default as the data set says.
    Raises:
        DataError: `data` is a one-shot iterator, has no length, is empty or does not hold pairs;
            or its pairs may be samples as well as batches; or it is asked for views and holds no
            pictures.

    Example:
        >>> samples = fl.open_data(data)
        >>> len(samples), samples.load(0).shape
        (16, torch.Size([3, 8, 8]))
    """
    if views not in (None, 1) and not isinstance(data, ImageDataset):
        raise DataError(
            f"asked for {views} views of {a_type(data)}, but views are made of pictures. "
            "Give an ImageDataset, or leave views out."
        )
    if isinstance(data, GivenSamples):
        return data
    _check_not_bare(data)
    if not _is_samples(data) and not _is_indexed(data):
        return GivenSamples(data)
    count = len(data) if isinstance(data, Sized) else None
    if not count:
        found = "does not say how many samples it holds" if count is None else "holds no samples"
        raise DataError(f"the {type(data).__name__} {found}. Give it a __len__ above 0.")
    if _is_samples(data):
        return data
    if isinstance(data, ImageDataset):
        return ImageSamples(data, views)
    return TensorSamples(data) if isinstance(data, TensorDataset) else ItemSamples(data)


def stored_samples(data: object, *, views: int | None = None) -> Samples:
    """`data` as samples whose features can be stored.

    Raises:
        DataError: as `open_data`; or it makes its own batches, or gives another sample each time
            it is asked: nothing fixed to store.
    """
    samples = open_data(data, views=views)
    if why := samples.why_not_stored():
        raise DataError(why)
    return samples


def make_batches(
    data: object,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    threads: int | None = None,
    as_targets: AsTargets = class_targets,
    world: World = ALONE,
) -> Batches:
    """Batches of `data`, which is anything that `open_data` takes.

    No sample is dropped: the last batch holds what is left, be it one sample. Where Frostline
    makes the order, it depends on `seed`, the epoch and the lengths only: samples of different
    lengths are shuffled so that those of like length go together. Pictures and `Samples` of your
    own are loaded in threads up to 2 batches ahead, any other data set in the calling thread;
    batches that are made elsewhere keep their own size and order.

    Args:
        batch_size: samples in a batch, of all processes together.
        shuffle: a new order every epoch; else the order of the data.
        seed: of the order.
        threads: loading threads; by default one for each core, at most 16.
        as_targets: makes the tensor of a batch's targets; by default class indices.
        world: the processes that share each epoch.
    Raises:
        ConfigError: `batch_size` or `threads` is less than 1.
        DataError: as `open_data`; or the targets are not such.
    """
    if batch_size < 1:
        raise ConfigError(f"asked for batches of {batch_size} samples. Use 1 or more.")
    workers = count_threads(threads)
    samples = open_data(data)
    if isinstance(samples, GivenSamples):
        return GivenBatches(samples.data, as_targets, world)
    order = Order(len(samples), batch_size, shuffle, seed, world, lengths_of(samples))
    return SampleBatches(samples, order, workers, as_targets)


def first_batch(samples: Samples, count: int, as_targets: AsTargets = class_targets) -> Batch:
    """The first `count` samples, as far as there are so many; of batches, the first one's."""
    if isinstance(samples, GivenSamples):
        with closing(GivenBatches(samples.data, as_targets).epoch(0)) as batches:
            first = next(batches)
        targets, names = first.targets[:count], first.names[:count]
        return Batch(some_rows(first.inputs, slice(count)), targets, names)
    few = range(min(count, len(samples)))
    inputs = inputs_of(samples, few)  # which a data set of items knows its targets by
    targets = as_targets(some_targets(samples.targets, torch.tensor(few)), len(few), samples.what)
    return Batch(inputs, targets, tuple(map(samples.name, few)))


def known_targets(data: object, as_targets: AsTargets) -> tuple[Tensor, tuple[str, ...]]:
    """Targets of training data, and what to call their samples, before it is trained on.

    All of them where they are known without their inputs, or come in batches; else of at most
    2,000 samples, taken evenly. Torch's random state stays as it is.

    Raises:
        DataError: as `open_data`; or they are no targets.
    """
    samples = open_data(data)
    with torch.random.fork_rng(devices=[]):
        if isinstance(samples, GivenSamples):
            with closing(GivenBatches(samples.data, as_targets).epoch(0)) as batches:
                parts = [(batch.targets, batch.names) for batch in batches]
            return torch.cat([t for t, _ in parts]), tuple(n for _, names in parts for n in names)
        count = len(samples)
        few = count if holds_all(samples.targets) else min(count, _TARGETS_AT_MOST)
        places = torch.arange(few) * count // few
        raw = some_targets(samples.targets, places if few < count else None)
        return as_targets(raw, few, samples.what), tuple(map(samples.name, places.tolist()))


@final
class TensorSamples(Samples):
    """Rows of a tensor in memory."""

    def __init__(self, data: TensorDataset) -> None:
        self.what = "the TensorDataset"
        if len(data.tensors) != 2:
            raise DataError(
                f"{self.what} has {len(data.tensors)} tensors. Give it two: inputs, targets. "
                "Several inputs go in a list of ({'ids': ..., 'mask': ...}, target), by name."
            )
        self._inputs, self.targets = data.tensors
        self.lengths = [self._inputs[0].numel()] * len(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def load(self, row: int) -> Tensor:
        return self._inputs[row]

    def in_batches(
        self,
        batches: Iterable[Sequence[int]],
        *,
        threads: int | None = None,  # noqa: ARG002
    ) -> Generator[Tensor, None, None]:
        """Gathered without a loop over the samples."""
        for rows in batches:
            yield self._inputs[torch.tensor(rows)]

    def collate(self, loaded: Sequence[Any]) -> Tensor:
        # Laid out as single samples are when stacked, whatever the strides of the whole: kernels
        # for other layouts give other last bits.
        return loaded.contiguous() if isinstance(loaded, Tensor) else torch.stack(list(loaded))


class LoadedHere(Samples):
    """Samples that are loaded in the calling thread, since loading may draw numbers; abstract."""

    def in_batches(
        self,
        batches: Iterable[Sequence[int]],
        *,
        threads: int | None = None,  # noqa: ARG002
    ) -> Generator[list[Any], None, None]:
        for rows in batches:
            yield [self.load(row) for row in rows]


@final
class ItemSamples(LoadedHere):
    """Any data set of (input, target) pairs."""

    def __init__(self, data: Any) -> None:
        self.what = f"the {type(data).__name__}"
        self._data = data
        self.targets = _LoadedTargets(self)
        self.known_targets: dict[int, Any] = {}
        self._first = self.load(0)

    def __len__(self) -> int:
        return len(self._data)

    def load(self, row: int) -> Any:
        item, self.known_targets[row] = as_pair(self._data[row], f"item {row} of {self.what}")
        return item

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, Callable[[], Any]]]:
        loaded = [self.load(row) for row in rows]
        return [(content_id(item), repeat(item).__next__) for item in loaded]

    def why_not_stored(self) -> str:
        return self._why_not_stored

    @cached_property
    def _why_not_stored(self) -> str:
        return why_not_fixed(self.load, len(self), self.what, first=self._first)


@final
class GivenSamples(Samples):
    """Batches that are made elsewhere: how many samples they hold, and nothing of a single one."""

    targets = ()

    def __init__(self, data: object) -> None:
        self.what = f"the {type(data).__name__}"
        self.data = data
        self._batches = GivenBatches(data)

    def __len__(self) -> int:
        return self._batches.samples

    def load(self, row: int) -> Any:  # noqa: ARG002
        raise DataError(self.why_not_stored())

    def why_not_stored(self) -> str:
        return (
            f"{a_type(self.data)} makes its own batches, so its samples cannot be told "
            "apart. Give the data set itself to have its features stored."
        )


@final
class _LoadedTargets(Sequence[Any]):
    """Targets that come with their items; an item that was never loaded is loaded for it."""

    def __init__(self, samples: ItemSamples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._samples.known_targets:
            self._samples.load(range(len(self))[index])
        return self._samples.known_targets[index]


def why_not_fixed(load: Callable[[int], Any], count: int, what: str, *, first: Any) -> str:
    """Why samples have no features to store: asked for again, one is another; else empty.

    Args:
        first: item 0, as it was loaded before.
    """
    tried = min(_TRIED, count)
    try:
        for row in (place * count // tried for place in range(tried)):
            known = content_id(load(row) if row else first)
            if any(content_id(load(row)) != known for _ in range(_TIMES - 1)):
                return (
                    f"{what} gives another sample each time it is asked (item {row}), so "
                    "there is nothing fixed to store. Leave random transforms out of it."
                )
    except DataError as error:
        return str(error)
    return ""


def _check_not_bare(data: object) -> None:
    """Refuse what other libraries take, a path, `X` or `(X, y)`, by saying what to make of it."""
    if isinstance(data, str | PathLike):
        raise DataError(
            f"{data} is a path, and says nothing of how the model takes its samples. Give a data "
            "set, as torchvision.datasets.ImageFolder(path, transform)."
        )
    if isinstance(data, Tensor | np.ndarray):
        raise DataError(
            f"one {type(data).__name__} holds inputs or targets alone. Give "
            "torch.utils.data.TensorDataset(inputs, targets)."
        )
    if not isinstance(data, tuple | list) or len(data) != 2:
        return
    if all(isinstance(part, Tensor | np.ndarray) for part in data):
        kind = type(data[0]).__name__
        made = "X, y" if kind == "Tensor" else "torch.from_numpy(X), torch.from_numpy(y)"
        raise DataError(
            f"the {type(data).__name__} holds two {kind}s, the inputs and the targets of all "
            f"samples. Give torch.utils.data.TensorDataset({made})."
        )


def _is_samples(data: object) -> TypeGuard[Samples]:
    """Whether it is `Samples`, by descent or by its members.

    Raises:
        DataError: it has `ids` and `load` of its own and lacks another member.
    """
    kind = type(data)
    if Samples in kind.__mro__:
        return True
    if not (hasattr(kind, "ids") and hasattr(kind, "load")):
        return False
    if missing := [name for name in _MEMBERS if not hasattr(data, name)]:
        raise DataError(
            f"the {kind.__name__} has ids and load, but no {', '.join(missing)}. Derive it from "
            "fl.Samples, which has all that needs no thought of yours."
        )
    return True


def _is_indexed(data: object) -> bool:
    """Whether `data` is indexed sample by sample; a list of batches is not."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed and not holds_batches(data)
