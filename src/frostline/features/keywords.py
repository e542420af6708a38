"""Data sets as the model of a cut takes them: by the names of its inputs, with its labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence, Sized
from contextlib import closing
from itertools import repeat
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from frostline.cutting import LABELS, Cut
from frostline.data import (
    AsTargets,
    ImageSamples,
    LoadedHere,
    Samples,
    TensorSamples,
    content_id,
    some_targets,
    stored_samples,
    why_not_fixed,
)
from frostline.errors import DataError, a_type

Collate = Callable[[list[Any]], Any]
"""Items of a data set -> a batch by the names of the model's inputs, as a `data_collator`."""

_OTHER_NAMES = ("label", "label_ids")  # that collators of transformers make `labels` of


def keyword_samples(
    cut: Cut, dataset: object, *, views: int | None, collate: Collate | None, as_targets: AsTargets
) -> Samples:
    """`dataset` as samples that make batches as the cut's example was built.

    Items that are mappings, and all where there is a `collate`, are inputs by name and labels;
    others are what `open_data` takes, and their targets the labels where the cut has them.

    Raises:
        DataError: as `stored_samples`; or an item lacks an input.
    """
    keywords = cut.prefix.spec.keywords
    if collate is not None or _gives_mappings(dataset):
        if views not in (None, 1) or Samples in type(dataset).__mro__:
            raise DataError(
                f"asked for a collate over {a_type(dataset)} with views or batches of its own. "
                "Leave collate out, or give a data set of plain items."
            )
        taken = _taken_by(cut.suffix.model)
        made = CollatedSamples(dataset, collate or stacked, keywords, taken)
        if why := made.why_not_stored():
            raise DataError(why)
        return made
    samples = stored_samples(dataset, views=views)
    if LABELS in keywords or (keywords and isinstance(samples, ImageSamples | TensorSamples)):
        return NamedSamples(samples, keywords, as_targets)
    return samples


@final
class CollatedSamples(LoadedHere):
    """Items of any kind, of which a collate makes batches by name; known by their inputs alone.

    Args:
        keywords: of the cut's example, each with its value, or `Tensor` for a tensor.
        taken: names that the model's forward takes.
    """

    def __init__(
        self, data: Any, collate: Collate, keywords: Mapping[str, Any], taken: Container[str]
    ) -> None:
        self.what = f"the {type(data).__name__}"
        self._data, self._collate, self._keywords, self._taken = data, collate, keywords, taken
        if not isinstance(data, Sized) or not len(data):
            raise DataError(
                f"{self.what} has no items that can be counted. Give a data set with a __len__ "
                "above 0."
            )
        self._labels: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._data)

    def load(self, row: int) -> Any:
        item = self._data[row]
        if not isinstance(item, Mapping):
            return item
        # As Trainers do: columns that the model does not name are no inputs.
        wanted = {*self._keywords, LABELS, *_OTHER_NAMES}
        return {name: item[name] for name in item if name in wanted or name in self._taken}

    def collate(self, loaded: Sequence[Any]) -> dict[str, Any]:
        return self._inputs(self._batch(loaded))

    def _batch(self, loaded: Sequence[Any]) -> Mapping[str, Any]:
        batch = self._collate(list(loaded))
        if not isinstance(batch, Mapping):
            raise DataError(
                f"collate made {a_type(batch)} of items of {self.what}. Let it give a mapping: "
                f"{', '.join(self._keywords)}."
            )
        return batch

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if missing := [
            n for n, kind in self._keywords.items() if kind is Tensor and n not in batch
        ]:
            raise DataError(
                f"items of {self.what} give {', '.join(map(str, batch)) or 'nothing'}, and the cut "
                f"was made with {', '.join(missing)} too. Give all, or cut without."
            )
        for name, value in batch.items():
            if not self._is_as_cut(name, value):
                raise DataError(
                    f"items of {self.what} give {name}, which the model's forward takes, and the "
                    "cut was made without it or with another value. Cut with an example that has "
                    f"{name} as they do, or leave it out of them."
                )
        return {n: batch[n] if kind is Tensor else kind for n, kind in self._keywords.items()}

    def _is_as_cut(self, name: str, value: Any) -> bool:
        """Whether a value of a batch goes where the example's went, or nowhere in both."""
        if name not in self._keywords:
            return name == LABELS or name not in self._taken
        kind = self._keywords[name]
        if kind is Tensor:
            return True
        values = value.tolist() if isinstance(value, Tensor) else value
        return all(each == kind for each in (values if isinstance(values, list) else [values]))

    def ids(self, rows: Sequence[int]) -> list[bytes]:
        return [self._id(row, self.load(row)) for row in rows]

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, Callable[[], Any]]]:
        items = [self.load(row) for row in rows]
        return [
            (self._id(row, item), repeat(item).__next__)
            for row, item in zip(rows, items, strict=True)
        ]

    def why_not_stored(self) -> str:
        def inputs(row: int) -> dict[str, Any]:
            return self.collate([self.load(row)])

        return why_not_fixed(inputs, len(self), self.what, first=inputs(0))

    @property
    def targets(self) -> list[Tensor] | None:
        """The labels of each item; None where they have none."""
        for row in range(len(self)):
            if row not in self._labels:
                self._id(row, self.load(row))
            if row not in self._labels:
                return None
        return [self._labels[row] for row in range(len(self))]

    def _id(self, row: int, item: Any) -> bytes:
        batch = self._batch([item])
        if batch.get(LABELS) is not None:
            self._labels[row] = batch[LABELS][0].clone()
        inputs = self._inputs(batch)
        return content_id({n: part for n, part in inputs.items() if n != LABELS})


@final
class NamedSamples(Samples):
    """Samples whose inputs and targets stand under the names that the cut has for them."""

    def __init__(self, inner: Samples, keywords: Mapping[str, Any], as_targets: AsTargets) -> None:
        self.inner, self._keywords, self._as_targets = inner, keywords, as_targets
        self.targets = as_targets(some_targets(inner.targets), len(inner), inner.what)
        self.views, self.transform, self.what = inner.views, inner.transform, inner.what
        self.lengths = inner.lengths

    def around(self, inner: Samples) -> NamedSamples:
        """The same names around other samples."""
        return NamedSamples(inner, self._keywords, self._as_targets)

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, row: int) -> tuple[Any, Tensor]:
        return self.inner.load(row), self._target(row)

    def ids(self, rows: Sequence[int]) -> list[bytes]:
        return self.inner.ids(rows)

    def name(self, sample: int) -> str:
        return self.inner.name(sample)

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, Callable[[], Any]]]:
        found = zip(rows, self.inner.read(rows), strict=True)
        return [(known, _Pair(load, self._target(row))) for row, (known, load) in found]

    def in_batches(
        self, batches: Iterable[Sequence[int]], *, threads: int | None = None
    ) -> Generator[list[Any], None, None]:
        wanted = [list(rows) for rows in batches]
        with closing(self.inner.in_batches(wanted, threads=threads)) as loading:
            for rows, loaded in zip(wanted, loading, strict=True):
                yield list(zip(loaded, map(self._target, rows), strict=True))

    def collate(self, loaded: Sequence[Any]) -> dict[str, Any]:
        inputs = self.inner.collate([item for item, _ in loaded])
        tensors = [n for n, kind in self._keywords.items() if kind is Tensor and n != LABELS]
        if not isinstance(inputs, Mapping):
            if len(tensors) != 1:
                raise DataError(
                    f"{self.what} gives one input, and the cut was made with "
                    f"{', '.join(tensors)}. Give a data set of mappings by these names."
                )
            inputs = {tensors[0]: inputs}
        labels = torch.stack([target for _, target in loaded])
        given = {**inputs, LABELS: labels}
        return {n: given.get(n) if kind is Tensor else kind for n, kind in self._keywords.items()}

    def _target(self, row: int) -> Tensor:
        found: Tensor = self.targets[row % len(self.inner)]
        return found


@final
class _Pair:
    """What loads an input, with its target beside it."""

    def __init__(self, load: Callable[[], Any], target: Tensor) -> None:
        self._load, self._target = load, target

    def __call__(self) -> tuple[Any, Tensor]:
        return self._load(), self._target


def stacked(items: list[Any]) -> dict[str, Tensor]:
    """Items of numbers, lists or tensors that are alike, as one tensor for each name.

    Raises:
        DataError: they are of different lengths.
    """
    named = [{_own_name(name): value for name, value in item.items()} for item in items]
    try:
        return {n: torch.stack([torch.as_tensor(item[n]) for item in named]) for n in named[0]}
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"items do not make a batch as they are: {error}. Give collate=, as "
            "transformers' DataCollatorWithPadding(tokenizer)."
        ) from error


def _taken_by(model: nn.Module) -> frozenset[str]:
    """The names that its forward takes, but for what it takes of any name."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of code that is not Python's
        return frozenset()
    return frozenset(
        p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def _own_name(name: str) -> str:
    return LABELS if name in _OTHER_NAMES else name


def _gives_mappings(dataset: Any) -> bool:
    """Whether single items are mappings; nothing is said of what is none of single items."""
    if isinstance(dataset, Mapping | IterableDataset) or not isinstance(dataset, Sized):
        return False
    if not len(dataset) or not hasattr(dataset, "__getitem__"):
        return False
    try:
        return isinstance(dataset[0], Mapping)
    except (KeyError, IndexError, TypeError, NotImplementedError):
        return False  # not indexed by number
