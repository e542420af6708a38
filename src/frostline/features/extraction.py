"""`fl.extract`: the features of a data set, computed where the store does not have them yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from frostline.choices import PrefixPrecision
from frostline.choices import Storage as Storage
from frostline.cutting import LABELS, Cut
from frostline.data import (
    AsTargets,
    Samples,
    class_targets,
    count_threads,
    inputs_of,
    lengths_of,
    ordered_map,
    some_targets,
)
from frostline.devices import device_of
from frostline.errors import FrostlineError, StoreError
from frostline.features.computing import Computing, Decisions, computing, in_passes_of
from frostline.features.feature_data import FeatureData
from frostline.features.keywords import Collate, CollatedSamples, NamedSamples, keyword_samples
from frostline.features.padding import Padding, alone, padded, padding_of
from frostline.store import (
    PADS,
    FeatureKey,
    Features,
    FeatureStore,
    StoredRows,
    ValueSpec,
    Writer,
    dtype_name,
    storage_error,
)
from frostline.tuning import PLAIN

Progress = Callable[[int, int], None]

_Loads = list[tuple[int, Callable[[], Any]]]  # rows of a batch, and what loads each
_Values = list[Tensor | list[Tensor]]  # of ragged values a tensor for each row
_Computed = tuple[list[int], _Values]  # rows of a batch, and their values

_TUNING_SAMPLES = 8
_CLAIMED_BATCHES = 4
_WAIT_SECONDS = 600.0
# A proof reads all tensors of the prefix, so for large ones not each batch has a proof of its own.
_PROOF_SHARE = 0.05  # of the time is what proofs may take
_MOST_BYTES = 256 << 20  # of rows that wait for one


def extract(
    cut: Cut,
    dataset: object,
    store: FeatureStore | str | Path,
    *,
    views: int | None = None,
    collate: Collate | None = None,
    precision: PrefixPrecision = "auto",
    storage: Storage = "auto",
    batch_size: int = 32,
    progress: Progress | None = None,
    compute: Computing | None = None,
    as_targets: AsTargets = class_targets,
    padding: Padding | None = None,
) -> FeatureData:
    """The features of `dataset`, each computed once and then read from `store`.

    Rows are found by the content of their sample: a second call makes no forward pass, ten new
    samples cost ten. Before any row is read or becomes visible, the model's frozen tensors are
    proven to be those that were cut. What was complete when a call was cut short stays; several
    processes may fill one store. Of a cut that was made with `labels` these are part of what is
    given, are never stored, and may change without a row being computed anew.

    Args:
        dataset: an `ImageDataset`, a `TensorDataset`, `Samples` of your own, or any indexed data
            set of (input, target), or of mappings by the names of the model's inputs, that gives
            the same sample each time.
        store: where features are kept, or its folder or address.
        views: random views of each picture to keep; by default as the data set says.
        collate: of items of a data set, as the `data_collator` of transformers' Trainer; gives a
            mapping by the names of the model's inputs. By default items of mappings are stacked.
        precision: `"exact"` is the model's own float32; `"auto"` the first form that suits
            the processor and is within 2 % relative error on real samples; a number allows that
            error.
        storage: on disk; `"auto"` keeps every bit that was computed.
        batch_size: samples in a pass.
        progress: called with (rows done, rows to compute).
        compute: how to compute, where that was decided before.
        as_targets: makes the tensor of the targets; by default class indices.
        padding: how samples of different lengths are padded, where that was found before.
    Raises:
        CutError: frozen tensors were changed or are trainable now, cut again; or samples are of
            different lengths, and padding changes what the model gives.
        DataError: the data set has no fixed samples, or one cannot be read.
        StoreError: the store's budget does not suffice, or its format is another.
        OutputError: the store cannot be written; complete rows are kept.

    Example:
        >>> cut = fl.cut(model, images)
        >>> print(fl.extract(cut, data, "features", precision="exact"))
        Features of 16 samples: [8] float32 each, 512 B
        computed in float32, exactly as in the model; 16 rows now, ...
        read with: for batch in features.loader(batch_size=64, shuffle=True)
        >>> fl.extract(cut, data, "features", precision="exact").computed
        0
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    samples = keyword_samples(cut, dataset, views=views, collate=collate, as_targets=as_targets)
    padding = padding or padding_of(cut, samples, device_of(cut.suffix.model))
    if compute is None:
        compute = computing(
            cut,
            lambda: inputs_of(samples, range(min(_TUNING_SAMPLES, len(samples)))),
            precision=precision,
            batch_size=batch_size,
            device=device_of(cut.suffix.model),
            planned_samples=len(samples) * samples.views,
            decisions=Decisions(store.root),
        )
        if precision == "exact":
            compute = in_passes_of(compute, min(batch_size, len(samples)))
    specs = _specs(cut, compute, storage)
    return _Extraction(samples, store, compute, specs, padding, progress).run(as_targets)


@final
@dataclass
class _Extraction:
    """One call of `extract`."""

    _samples: Samples
    _store: FeatureStore
    _compute: Computing
    _specs: tuple[ValueSpec, ...]
    _padding: Padding
    _progress: Progress | None
    _computed: int = 0
    _seconds: float = 0.0
    _storage_error: float = 0.0
    # Seconds of each batch; lists, since threads append.
    _loading: list[float] = field(default_factory=list)
    _computing: list[float] = field(default_factory=list)

    @property
    def _every(self) -> range:
        return range(len(self._samples) * self._samples.views)

    def run(self, as_targets: AsTargets) -> FeatureData:
        cut, samples, specs = self._compute.cut, self._samples, self._specs
        cut.check_current()
        parts = {
            **self._compute.key,
            "transform": samples.transform,
            "values": " ".join(f"{dtype_name(spec.dtype)} {list(spec.shape)}" for spec in specs),
            "storage": " ".join(dtype_name(spec.stored) for spec in specs),
        }
        key, model = FeatureKey(parts), type(cut.suffix.model).__name__
        note = {"model": model, "line": cut.why, "form": self._compute.words}
        features = self._store.open(key, specs, note=note)
        ids = [] if features.is_empty() else samples.ids(self._every)
        why = "rows of these samples were missing" if ids else self._store.explain_miss(key)
        rows: StoredRows | None = None
        with suppress(StoreError):  # some are missing or damaged
            rows = features.read(ids) if ids else None
        if rows is None:
            ids = self._fill(features, ids)
            rows = features.read(ids)
        return FeatureData(
            rows,
            _targets(samples, as_targets),
            samples.views,
            self._computed,
            self._seconds,
            self._compute.words,
            rows.nbytes,
            self._storage_error,
            why if self._computed else "",
            tuple(map(samples.name, range(len(samples)))),
            *self._shares(),
            self._padding,
            lengths_of(samples),
            cut.frontier.names if cut.prefix.spec.keywords else (),
        )

    def _shares(self) -> tuple[float, float]:
        """Seconds of loading and of computing; no more than there were, if threads shared them."""
        loading, computing = sum(self._loading), sum(self._computing)
        share = min(1.0, self._seconds / (loading + computing or 1.0))
        return loading * share, computing * share

    def _fill(self, features: Features, known: list[bytes]) -> list[bytes]:
        """Compute what is missing; gives the ids of all rows."""
        start = time.perf_counter()
        missing: Sequence[int] = features.missing(known) if known else self._every
        missing = self._padding.longest_first(missing)
        ids, found = known, dict(enumerate(known))
        with features.writer() as writer:
            while missing:
                before = self._computed
                self._fill_claimed(writer, missing, found)
                ids = [found[row] for row in self._every]
                missing = self._padding.longest_first(features.missing(ids))
                if missing and self._computed == before:
                    writer.wait(ids, _WAIT_SECONDS)
        self._seconds = time.perf_counter() - start
        return ids

    def _fill_claimed(
        self, writer: Writer, missing: Sequence[int], found: dict[int, bytes]
    ) -> None:
        """Compute those of the missing rows that no other process is computing."""
        batches = self._claimed(writer, missing, found)
        # Better one to a thread than one over all threads; but not in plain float32, whose last
        # bits may depend on the number of threads.
        on_cpu = self._compute.device.type == "cpu" and self._compute.tuned.form != PLAIN
        beside = on_cpu and 1 < torch.get_num_threads() <= count_threads(None)
        computed = self._side_by_side(batches) if beside else self._overlapping(batches)
        with closing(computed), _Publisher(self._compute.cut, writer) as publisher:
            for rows, values in computed:
                if not self._computed:
                    stored = zip(values, self._specs, strict=True)
                    errors = [storage_error(_joined(value), spec.storage) for value, spec in stored]
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

    def _side_by_side(self, batches: Iterable[_Loads]) -> Generator[_Computed, None, None]:
        """Batches side by side, each from its files to its values by one thread.

        Decoding beside a forward that spreads over all cores makes both wait at every operation's
        barrier. One thread a batch has no barriers: measured here, 400 photos through AlexNet in
        bfloat16 take two thirds of the time. Torch's number of threads is as before in the end.
        """
        cores = torch.get_num_threads()
        # Of each thread; for threads yet to come it is put back. Once, since each call empties
        # oneDNN's cache of kernels for all: ResNet-18 took a tenth longer.
        begin = partial(torch.set_num_threads, 1)

        def alone(batch: _Loads) -> _Computed:
            start = time.perf_counter()
            samples = [load() for _, load in batch]
            self._loading.append(time.perf_counter() - start)
            return [row for row, _ in batch], self._values(samples)

        try:
            with closing(
                ordered_map(alone, batches, threads=cores, ahead=cores, begin=begin)
            ) as results:
                yield from results
        finally:
            torch.set_num_threads(cores)

    def _values(self, samples: Sequence[Any]) -> _Values:
        """The values of some samples, on the CPU; of ragged ones a tensor for each sample."""
        start = time.perf_counter()
        collate, cut = self._samples.collate, self._compute.cut
        whole = [v.cpu() for v in self._compute.rows(samples, collate)]
        values: _Values = list(whole)
        if self._padding.form or any(spec.ragged_count for spec in self._specs):
            each = [alone(cut, collate, one) for one in samples]
            for inputs in each:
                self._padding.check(inputs, self._samples)
            values = self._padding.own(cut, whole, each)
        values = [v for v, of in zip(values, cut.frontier.values, strict=True) if of.name != LABELS]
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


def _specs(cut: Cut, compute: Computing, storage: Storage) -> tuple[ValueSpec, ...]:
    kept: str = storage
    if storage == "auto":
        # What was computed in bfloat16 has no more bits than that.
        name = compute.tuned.form.dtype
        kept = "same" if compute.tuned.form == PLAIN or name == "float32" else name
    return tuple(
        # Not by the module's path: the same weights under another name give the same rows.
        ValueSpec(f"value {number}", value.shape, value.dtype, kept)
        for number, value in enumerate(v for v in cut.frontier.values if v.name != LABELS)
    )


def _targets(samples: Samples, as_targets: AsTargets) -> Tensor | tuple[Tensor, ...]:
    """Of all samples; as they are where they came by name, of different lengths one by one."""
    if isinstance(samples, NamedSamples):
        found: Tensor = samples.targets
        return found
    if not isinstance(samples, CollatedSamples):
        return as_targets(some_targets(samples.targets), len(samples), samples.what)
    each = samples.targets
    if each is None:
        return torch.empty(0)
    return torch.stack(each) if len({one.shape for one in each}) == 1 else tuple(each)


def _joined(value: Tensor | list[Tensor]) -> Tensor:
    return value if isinstance(value, Tensor) else padded(value, PADS)


@final
@dataclass
class _Publisher:
    """Computed rows, visible in groups, each once the cut is proven to be the one of its key.

    At the end of its block, and where that fails, what waits is published.
    """

    _cut: Cut
    _writer: Writer
    _waiting: list[tuple[list[bytes], _Values]] = field(default_factory=list)
    _bytes: int = 0
    _proof_seconds: float = 0.0
    _proven_at: float = field(default_factory=time.perf_counter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The first failure is the one to raise.
        with suppress(FrostlineError) if kind else nullcontext():
            self.publish()

    def put(self, row_ids: list[bytes], values: _Values) -> None:
        """Keep rows, and publish all that wait where it is time for a proof."""
        self._waiting.append((row_ids, values))
        self._bytes += sum(row.nbytes for value in values for row in value)
        since = time.perf_counter() - self._proven_at
        if self._proof_seconds <= _PROOF_SHARE * since or self._bytes > _MOST_BYTES:
            self.publish()

    def publish(self) -> None:
        """Prove, then store what waits; of a cut that is another one now it is dropped."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        start = time.perf_counter()
        self._cut.check_current()
        self._proven_at = time.perf_counter()
        self._proof_seconds = self._proven_at - start
        for row_ids, values in waiting:
            self._writer.put(row_ids, values)
