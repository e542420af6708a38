"""`fl.extract`: the features of a data set, computed where the store does not have them yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from frostline.choices import Storage as Storage
from frostline.cutting import Cut
from frostline.data import (
    AsTargets,
    Batch,
    Order,
    Samples,
    class_targets,
    first_batch,
    ordered_map,
    some_targets,
    stored_samples,
)
from frostline.devices import device_of
from frostline.errors import StoreError
from frostline.features.computing import Computing, computing, in_passes_of
from frostline.features.decisions import Decisions
from frostline.features.publishing import publishing
from frostline.features.side_by_side import is_worth_it, side_by_side
from frostline.store import (
    FeatureKey,
    Features,
    FeatureStore,
    Rows,
    ValueSpec,
    Writer,
    storage_error,
)
from frostline.tuning import PLAIN, Precision

Progress = Callable[[int, int], None]

_Loads = list[tuple[int, Callable[[], Any]]]  # rows of a batch, and what loads each
_Computed = tuple[list[int], list[Tensor]]  # rows of a batch, and their values

_TUNING_SAMPLES = 8
_CLAIMED_BATCHES = 4
_WAIT_SECONDS = 600.0


@final
@dataclass(frozen=True)
class FeatureData:
    """The features of a data set, in the order of its samples.

    Attributes:
        rows: the stored rows; view `v` of sample `i` is row `v * samples + i`.
        targets: class indices of the samples, int64.
        views: how many fixed views each sample has; epochs walk through them in turn.
        computed: rows that this call computed; 0 means no forward pass of the prefix over data.
        seconds: that computing them took.
        form: in which they were computed, in words, with the error that was measured.
        nbytes: that these rows take as they are read, without what is kept beside them.
        storage_error: relative error of the storage dtype, on the first batch; 0 if none.
        why: why rows had to be computed; empty if none had to be.
        names: what to call each sample in messages.
        decode_seconds: of `seconds`, those in which loading samples was waited for; where batches
            are loaded and computed side by side, the share of the threads' time.
        prefix_seconds: the same of computing.
    """

    rows: Rows
    targets: Tensor
    views: int
    computed: int
    seconds: float
    form: str
    nbytes: int
    storage_error: float
    why: str
    names: tuple[str, ...]
    decode_seconds: float = 0.0
    prefix_seconds: float = 0.0

    def __len__(self) -> int:
        """Samples, not views."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        """The values of one sample's first view, and its class."""
        values = self.rows.gather(torch.tensor([index]))
        return tuple(value[0] for value in values), int(self.targets[index])

    def batches(self, *, batch_size: int, shuffle: bool, seed: int = 0) -> FeatureBatches:
        """The features in the batches in which a plain loop would see the samples."""
        return FeatureBatches(self, Order(len(self), batch_size, shuffle, seed))


@final
@dataclass(frozen=True)
class FeatureBatches:
    """Stored features in batches: one gather for each, no work per sample."""

    data: FeatureData
    order: Order

    def __len__(self) -> int:
        return len(self.order)

    @property
    def samples(self) -> int:
        return len(self.data)

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, counted from 0, from number `start` on."""
        data = self.data
        first = (epoch % data.views) * len(data)
        name_of = data.names.__getitem__
        for indices in self.order.epoch(epoch, start=start):
            values = data.rows.gather(indices + first if first else indices)
            names = tuple(map(name_of, indices.tolist()))
            yield Batch(values, data.targets[indices], names)


def extract(
    cut: Cut,
    dataset: object,
    store: FeatureStore,
    *,
    views: int | None = None,
    precision: Precision = "auto",
    storage: Storage = "auto",
    batch_size: int = 32,
    progress: Progress | None = None,
    compute: Computing | None = None,
    as_targets: AsTargets = class_targets,
) -> FeatureData:
    """The features of `dataset`, each computed once and then read from `store`.

    Rows are found by the content of their sample: a second call makes no forward pass, ten new
    samples cost ten. Before any row is read or becomes visible, the model's frozen tensors are
    proven to be those that were cut. What was complete when a call was cut short stays; several
    processes may fill one store.

    Args:
        dataset: an `ImageDataset`, a `TensorDataset`, `Samples` of your own, or any indexed data
            set of (input, target) that gives the same sample each time.
        views: random views of each picture to keep; by default as the data set says.
        precision: `"exact"` is the model's own float32; `"auto"` the first form that suits
            the processor and is within 2 % relative error on real samples; a number allows that
            error.
        storage: on disk; `"auto"` keeps every bit that was computed.
        batch_size: samples in a pass.
        progress: told (rows done, rows to compute).
        compute: how to compute, where that was decided before.
        as_targets: makes the tensor of the targets; by default class indices.
    Raises:
        CutError: frozen tensors were changed or are trainable now; cut again.
        DataError: the data set has no fixed samples, or one cannot be read.
        StoreError: the store's budget does not suffice, or its format is another.
        OutputError: the store cannot be written; complete rows are kept.
    """
    samples = stored_samples(dataset, views=views)
    if compute is None:
        compute = computing(
            cut,
            lambda: first_batch(samples, _TUNING_SAMPLES, as_targets).inputs,
            precision=precision,
            batch_size=batch_size,
            device=device_of(cut.suffix.model),
            planned_samples=len(samples) * samples.views,
            decisions=Decisions(store.root),
        )
        if precision == "exact":
            compute = in_passes_of(compute, min(batch_size, len(samples)))
    return _Extraction(cut, samples, store, compute, storage, progress).run(as_targets)


class _Extraction:
    def __init__(
        self,
        cut: Cut,
        samples: Samples,
        store: FeatureStore,
        compute: Computing,
        storage: Storage,
        progress: Progress | None,
    ) -> None:
        self._cut = cut
        self._samples = samples
        self._every = range(len(samples) * samples.views)
        self._store = store
        self._compute = compute
        self._specs = _specs(cut, compute, storage)
        self._progress = progress
        self._computed = 0
        self._seconds = 0.0
        self._loading: list[float] = []  # seconds of each batch; lists, since threads append
        self._computing: list[float] = []
        self._storage_error = 0.0

    def run(self, as_targets: AsTargets) -> FeatureData:
        self._cut.check_current()
        samples, key = self._samples, self._key()
        features = self._store.open(key, self._specs, note=self._note())
        ids: list[bytes] = []
        rows: Rows | None = None
        why = ""
        if features.nbytes:
            ids = samples.ids(self._every)
            rows = _try_read(features, ids)
        else:
            why = self._store.explain_miss(key)
        if rows is None:
            why = why or "rows of these samples were missing"
            ids = self._fill(features, ids)
            rows = features.read(ids)
        return FeatureData(
            rows,
            as_targets(some_targets(samples.targets), len(samples), samples.what),
            samples.views,
            self._computed,
            self._seconds,
            self._compute.words,
            sum(spec.unit_nbytes for spec in self._specs) * len(ids),
            self._storage_error,
            why if self._computed else "",
            tuple(map(samples.name, range(len(samples)))),
            *self._shares(),
        )

    def _shares(self) -> tuple[float, float]:
        """Seconds of loading and of computing; no more than there were, if threads shared them."""
        loading, computing = sum(self._loading), sum(self._computing)
        share = min(1.0, self._seconds / (loading + computing or 1.0))
        return loading * share, computing * share

    def _key(self) -> FeatureKey:
        values = " ".join(f"{_name(spec.dtype)} {list(spec.shape)}" for spec in self._specs)
        storage = " ".join(_name(spec.stored) for spec in self._specs)
        transform = self._samples.transform
        parts = {**self._compute.key, "transform": transform, "values": values, "storage": storage}
        return FeatureKey(parts)

    def _note(self) -> dict[str, str]:
        model = type(self._cut.suffix.model).__name__
        return {"model": model, "line": self._cut.why, "form": self._compute.words}

    def _fill(self, features: Features, known: list[bytes]) -> list[bytes]:
        """Compute what is missing; gives the ids of all rows."""
        start = time.perf_counter()
        missing: Sequence[int] = features.missing(known) if known else self._every
        found = dict(enumerate(known))
        with features.writer() as writer:
            while True:
                before = self._computed
                self._fill_claimed(writer, missing, found)
                ids = [found[row] for row in self._every]
                missing = features.missing(ids)
                if not missing:
                    break
                if self._computed == before:
                    writer.wait(ids, _WAIT_SECONDS)
        self._seconds = time.perf_counter() - start
        return ids

    def _fill_claimed(
        self, writer: Writer, missing: Sequence[int], found: dict[int, bytes]
    ) -> None:
        """Compute those of the missing rows that no other process is computing."""
        batches = self._claimed(writer, missing, found)
        computed = (
            side_by_side(self._from_file, batches)
            if is_worth_it(self._compute)
            else self._overlapping(batches)
        )
        with closing(computed), publishing(self._cut, writer) as publisher:
            for rows, values in computed:
                if not self._computed:
                    stored = zip(values, self._specs, strict=True)
                    errors = [storage_error(value, spec.storage) for value, spec in stored]
                    self._storage_error = max(errors)
                publisher.put([found[row] for row in rows], values)
                self._computed += len(rows)
                if self._progress:
                    self._progress(self._computed, len(missing))

    def _claimed(
        self, writer: Writer, missing: Sequence[int], found: dict[int, bytes]
    ) -> Generator[_Loads, None, None]:
        """The missing rows in batches, claimed a few batches at a time."""
        size = self._compute.tuned.batch_size
        chunk = size * _CLAIMED_BATCHES
        for start in range(0, len(missing), chunk):
            rows = missing[start : start + chunk]
            ids, loads = zip(*self._samples.read(rows), strict=True)
            found.update(zip(rows, ids, strict=True))
            mine = [(rows[place], loads[place]) for place in writer.claim(ids, len(ids))]
            del loads  # and with them the samples of rows that another process computes
            for first in range(0, len(mine), size):
                yield mine[first : first + size]

    def _from_file(self, batch: _Loads) -> _Computed:
        """A batch from its files to its values, by the calling thread."""
        start = time.perf_counter()
        samples = [load() for _, load in batch]
        self._loading.append(time.perf_counter() - start)
        return [row for row, _ in batch], self._values(samples)

    def _values(self, samples: Sequence[Any]) -> list[Tensor]:
        """The values of some samples, on the CPU."""
        start = time.perf_counter()
        values = [v.cpu() for v in self._compute.rows(samples, self._samples.collate)]
        self._computing.append(time.perf_counter() - start)
        return values

    def _overlapping(self, batches: Iterable[_Loads]) -> Generator[_Computed, None, None]:
        """Values batch by batch; the next samples are loaded in threads meanwhile."""
        pending: deque[list[int]] = deque()

        def loads() -> Iterator[Callable[[], Any]]:
            for batch in batches:
                pending.append([row for row, _ in batch])
                yield from (load for _, load in batch)

        ahead = 2 * self._compute.tuned.batch_size
        with closing(ordered_map(lambda load: load(), loads(), ahead=ahead)) as loaded:
            start = time.perf_counter()
            for sample in loaded:
                rows = pending.popleft()
                samples = [sample, *(next(loaded) for _ in rows[1:])]
                self._loading.append(time.perf_counter() - start)
                yield rows, self._values(samples)
                start = time.perf_counter()


def _try_read(features: Features, ids: list[bytes]) -> Rows | None:
    """The rows, unless some are missing or damaged."""
    with suppress(StoreError):
        return features.read(ids)
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _specs(cut: Cut, compute: Computing, storage: Storage) -> tuple[ValueSpec, ...]:
    kept: str = storage
    if storage == "auto":
        # What was computed in bfloat16 has no more bits than that.
        name = compute.tuned.form.dtype
        kept = "same" if compute.tuned.form == PLAIN or name == "float32" else name
    return tuple(
        # Not by the module's path: the same weights under another name give the same rows.
        ValueSpec(f"value {number}", value.shape, value.dtype, kept)
        for number, value in enumerate(cut.frontier.values)
    )
