"""A data set as numbered rows: a content hash for each, and what the model takes for it.

Rows run through the views: row `view * samples + sample` is a view of a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, final

import numpy as np
import PIL
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from frostline._files import file_digest
from frostline.data import Augment, ImageDataset, as_pair, class_targets, ordered_map
from frostline.errors import DataError

# Samples of a data set of the user's own that are asked for, and how often each: a change made in
# half of all cases is missed once in 8 ** 16 times, one made in a tenth once in 800.
_TRIED = 16
_TIMES = 4


class Source(Protocol):
    """Samples of one data set whose features can be stored.

    Attributes:
        samples: how many.
        views: fixed views of each.
        transform: what happens between a sample's content and the model's input.
    """

    samples: int
    views: int
    transform: str

    def ids(self, rows: Sequence[int], *, keep: bool) -> list[bytes]:
        """Content hash of each row, 16 bytes; with `keep`, `load` or `drop` of each comes next."""
        ...

    def drop(self, rows: Iterable[int]) -> None:
        """These rows are not loaded after all."""
        ...

    def load(self, row: int) -> Any:
        """What the model takes for one row, without the batch dimension; safe in threads."""
        ...

    def targets(self) -> Tensor:
        """Class indices of the samples, int64; every row must have been asked for once."""
        ...

    def name(self, sample: int) -> str:
        """What to call a sample in messages."""
        ...


def source_of(data: object, *, views: int | None = None) -> Source:
    """`data` as a source.

    Args:
        views: how many views of each sample to keep; by default what the data set says.
    Raises:
        DataError: it keeps its own batches or order, or gives another sample each time it is
            asked: nothing fixed to store; or it is empty.
    """
    source = _source_of(data, views)
    if not source.samples:
        raise DataError(f"the {type(data).__name__} holds no samples. Give it a __len__ above 0.")
    return source


def _source_of(data: object, views: int | None) -> Source:
    if isinstance(data, ImageDataset):
        return ImageSource(data, views)
    if views not in (None, 1):
        raise DataError(
            f"asked for {views} views of a {type(data).__name__}, but views are made of pictures. "
            "Give an ImageDataset, or leave views out."
        )
    if isinstance(data, TensorDataset):
        return TensorSource(data)
    is_map = isinstance(data, Dataset) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    )
    if not is_map or isinstance(data, DataLoader | IterableDataset | list | tuple):
        raise DataError(
            f"a {type(data).__name__} makes its own batches, so its samples cannot be told apart. "
            "Give the data set itself to have its features stored."
        )
    return ItemSource(data)


def collate(loaded: Sequence[Any]) -> Any:
    """Single samples -> a batch as the model takes it."""
    if isinstance(loaded[0], Tensor):
        return torch.stack(list(loaded))
    return default_collate(list(loaded))


@final
class ImageSource:
    """Pictures: the hash is of the file's bytes and the view's seed, so names do not count."""

    def __init__(self, data: ImageDataset, views: int | None) -> None:
        if data.augment.kind == "live":
            raise DataError("augment live makes a new view every epoch, so there is none to store.")
        self._data = data
        if views is not None and views != data.augment.views:
            augment = Augment("views", views) if views > 1 else Augment()
            self._data = ImageDataset(
                data.images, data.preprocessing, augment=augment, seed=data.seed
            )
        self.samples = len(data)
        self.views = self._data.augment.views
        # Another decoder may round otherwise; what a view shows is part of its seed.
        self.transform = f"{data.preprocessing!r}, Pillow {PIL.__version__}"
        self._digests: list[str] = []

    def ids(self, rows: Sequence[int], *, keep: bool) -> list[bytes]:  # noqa: ARG002
        if not self._digests:
            paths = [sample.path for sample in self._data.images.samples]
            with closing(ordered_map(_digest, paths, ahead=64)) as digests:
                self._digests = list(digests)
        return [self._id(row) for row in rows]

    def drop(self, rows: Iterable[int]) -> None:
        """Nothing is held."""

    def load(self, row: int) -> Tensor:
        view, sample = divmod(row, self.samples)
        return self._data.load(sample, view)[0]

    def targets(self) -> Tensor:
        return torch.tensor(self._data.labels)

    def name(self, sample: int) -> str:
        return self._data.names[sample]

    def _id(self, row: int) -> bytes:
        view, sample = divmod(row, self.samples)
        seed = self._data.view_seed(sample, view)
        return xxhash.xxh3_128_digest(f"{self._digests[sample]} view {seed}".encode())


@final
class TensorSource:
    """Rows of a tensor in memory."""

    views = 1
    transform = "none"

    def __init__(self, data: TensorDataset) -> None:
        if len(data.tensors) != 2:
            raise DataError(
                f"the TensorDataset has {len(data.tensors)} tensors. Give it two: inputs, targets."
            )
        self._inputs, self._targets = data.tensors
        self.samples = len(data)

    def ids(self, rows: Sequence[int], *, keep: bool) -> list[bytes]:  # noqa: ARG002
        return [content_id(self._inputs[row]) for row in rows]

    def drop(self, rows: Iterable[int]) -> None:
        """Nothing is held."""

    def load(self, row: int) -> Tensor:
        return self._inputs[row]

    def targets(self) -> Tensor:
        return class_targets(self._targets, self.samples, "the TensorDataset")

    def name(self, sample: int) -> str:
        return f"sample {sample}"


@final
class ItemSource:
    """Any data set of (input, class index): the hash is of the input's own numbers.

    Raises:
        DataError: asked again for some of its samples, it gives other ones.
    """

    views = 1
    transform = "none"

    def __init__(self, data: Any) -> None:
        self._data = data
        self._what = type(data).__name__
        self.samples = len(data)
        self._targets: dict[int, int] = {}
        self._kept: dict[int, Any] = {}
        tried = min(_TRIED, self.samples)
        for row in (place * self.samples // tried for place in range(tried)):
            first = content_id(self._item(row))
            if any(content_id(self._item(row)) != first for _ in range(_TIMES - 1)):
                raise DataError(
                    f"the {self._what} gives another sample each time it is asked (item {row}), so "
                    "there is nothing fixed to store. Leave random transforms out of it."
                )

    def ids(self, rows: Sequence[int], *, keep: bool) -> list[bytes]:
        found = []
        for row in rows:
            item = self._item(row)
            found.append(content_id(item))
            if keep:
                self._kept[row] = item
        return found

    def drop(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._kept.pop(row, None)

    def load(self, row: int) -> Any:
        kept = self._kept.pop(row, None)
        return self._item(row) if kept is None else kept

    def targets(self) -> Tensor:
        targets = [self._targets[row] for row in range(self.samples)]
        return class_targets(targets, self.samples, f"the {self._what}")

    def name(self, sample: int) -> str:
        return f"sample {sample}"

    def _item(self, row: int) -> Any:
        item, self._targets[row] = as_pair(self._data[row], f"item {row} of the {self._what}")
        return item


def content_id(item: Any) -> bytes:
    """Hash of an input's numbers, shapes, dtypes and names.

    Raises:
        DataError: there is something in it that is no tensor, array or number.
    """
    state = xxhash.xxh3_128()
    _add(state, item)
    return state.digest()


def _add(state: Any, item: Any) -> None:
    if isinstance(item, Mapping):
        for name in sorted(item):
            state.update(f"name {name}\0".encode())
            _add(state, item[name])
    elif isinstance(item, tuple | list):
        state.update(f"{len(item)} parts\0".encode())
        for part in item:
            _add(state, part)
    elif isinstance(item, Tensor):
        state.update(f"{item.dtype} {tuple(item.shape)}\0".encode())
        if item.numel():
            state.update(item.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    elif isinstance(item, np.ndarray | int | float | bool):
        _add(state, torch.as_tensor(item))
    else:
        raise DataError(
            f"an input holds a {type(item).__name__}, which has no numbers to tell it by. Give "
            "tensors, arrays or numbers."
        )


def _digest(path: Any) -> str:
    try:
        return file_digest(path, xxhash.xxh3_128)
    except OSError as error:
        told = f"{path} cannot be read: {error.strerror or error}. Restore it, or leave it out."
        raise DataError(told) from error
