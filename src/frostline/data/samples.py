"""Samples: what one data set is, whatever it came as; the seam for data of one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils.data import default_collate

from frostline.data.ordered import ordered_map
from frostline.errors import DataError, a_type

_BATCHES_AHEAD = 2
_DO = "Give one class index, a whole number, for each sample."


class Samples(Protocol):
    """A data set: what each sample is, by content, by name and as the model takes it.

    Derive from it for data of your own: `__len__`, `targets` and `load` will do; give `ids` where
    samples can be told apart without loading them, and `name` for messages that name a sample.

    Samples may have several fixed views. They are numbered as rows: view `v` of sample `i` is row
    `v * len(samples) + i`, so the rows of a data set without views are its samples.

    Attributes:
        targets: of the samples, in order, as they were given: a tensor, array, list or tuple, or
            a sequence that loads each when it is asked for.
        views: fixed views of each sample, one an epoch in turn; 0: a new one in every epoch.
        transform: what happens between a sample's content and the model's input, in words that
            differ where the result does.
        what: what to call the data set in messages.
        lengths: of the samples, in positions, where batches are padded to their longest; None
            where that is not known without loading them.

    Example:
        >>> class Recordings(fl.Samples):
        ...     targets = [0, 1, 1]
        ...     def __len__(self):
        ...         return 3
        ...     def load(self, row):
        ...         return torch.full((100,), float(row))
        >>> fl.open_data(Recordings()).name(2)
        'sample 2'
    """

    targets: Any
    views: int = 1
    transform: str = "none"
    what: str = "the data set"
    lengths: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Samples, not views."""

    @abstractmethod
    def load(self, row: int) -> Any:
        """What the model takes for one row, without the batch dimension; safe in threads."""

    def ids(self, rows: Sequence[int]) -> list[bytes]:
        """Content hash of each row, 16 bytes: equal ids share their stored features."""
        return [content_id(self.load(row)) for row in rows]

    def name(self, sample: int) -> str:
        """What to call a sample in messages."""
        return f"sample {sample}"

    def collate(self, loaded: Sequence[Any]) -> Any:
        """Single samples -> a batch as the model takes it."""
        return default_collate(list(loaded))

    def why_not_stored(self) -> str:
        """Why there is nothing fixed whose features could be stored; empty where there is."""
        return ""

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, Callable[[], Any]]]:
        """The id of each row, and what loads it: at once where its id took loading it."""
        loads = [partial(self.load, row) for row in rows]
        return list(zip(self.ids(rows), loads, strict=True))

    def in_batches(
        self, batches: Iterable[Sequence[int]], *, threads: int | None = None
    ) -> Generator[Any, None, None]:
        """The loaded rows of each batch, to be collated; up to 2 batches are loaded ahead.

        Close it when it is left before its end, so that its threads end too.
        """
        wanted = [list(rows) for rows in batches]
        every = (row for rows in wanted for row in rows)
        ahead = _BATCHES_AHEAD * max(map(len, wanted), default=0)
        with closing(ordered_map(self.load, every, threads=threads, ahead=ahead)) as loaded:
            for rows in wanted:
                yield list(islice(loaded, len(rows)))


def lengths_of(samples: Samples) -> list[int] | None:
    """`samples.lengths`, checked.

    Raises:
        DataError: they are not one for each sample.
    """
    if samples.lengths is None:
        return None
    lengths = [int(length) for length in samples.lengths]
    if len(lengths) != len(samples):
        raise DataError(
            f"{samples.what} has {len(samples)} samples and {len(lengths)} lengths. Give one "
            "length for each sample, or None."
        )
    return lengths


def inputs_of(samples: Samples, rows: Sequence[int]) -> Any:
    """Some rows as one batch of inputs."""
    with closing(samples.in_batches([rows])) as loaded:
        return batched(samples, next(loaded), list(map(samples.name, rows)))


def batched(samples: Samples, loaded: Sequence[Any], names: Sequence[str]) -> Any:
    """`samples.collate(loaded)`; raises DataError, with their names, where they do not fit."""
    try:
        return samples.collate(loaded)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"{names[0]} to {names[-1]} of this batch do not fit together: {error}. "
            "Make all items alike, or give a DataLoader with its own collate_fn."
        ) from error


def some_targets(targets: Any, places: Tensor | None = None) -> Any:
    """The raw targets at `places`, by default all, put together as far as they fit."""
    if isinstance(targets, Tensor | np.ndarray):
        return targets if places is None else targets[places]
    chosen = list(targets) if places is None else [targets[i] for i in places.tolist()]
    try:
        return default_collate(chosen)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError):
        return chosen  # whoever makes tensors of them says what is wrong


def class_targets(targets: object, count: int, what: str) -> Tensor:
    """`targets` as int64 `(count,)`.

    Args:
        targets: a tensor, array or sequence of `count` whole numbers; `(count, 1)` is accepted.
        what: names their source in the message.
    Raises:
        DataError: fractions, one-hot rows, text, or another number of targets.
    """
    try:
        found = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the targets of {what} are {type(targets).__name__}, not numbers. {_DO}"
        ) from error
    if found.is_floating_point() or found.is_complex():
        raise DataError(f"the targets of {what} are {found.dtype}. {_DO}")
    if found.dim() == 2 and found.shape[1] == 1:
        found = found.squeeze(1)
    if found.shape != (count,):
        raise DataError(
            f"the targets of {what} have the shape {tuple(found.shape)} for {count} samples. {_DO}"
        )
    return found.long()


def content_id(item: Any) -> bytes:
    """Hash of an input's numbers, shapes, dtypes and names, 16 bytes.

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
            f"an input holds {a_type(item)}, which has no numbers to recognise it by. "
            "Give tensors, arrays or numbers."
        )
