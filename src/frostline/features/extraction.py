"""`fl.extract`: the features of a data set, computed where the store does not have them yet."""

from __future__ import annotations

import secrets
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from frostline.choices import PrefixPrecision
from frostline.choices import Storage as Storage
from frostline.cutting import LABELS, Cut
from frostline.data import (
    AsTargets,
    Samples,
    class_targets,
    inputs_of,
    lengths_of,
    some_targets,
)
from frostline.devices import device_of
from frostline.errors import ConfigError, FrostlineError, StoreError, a_type
from frostline.features.agreeing import (
    anywhere,
    check_alike,
    computing_of_first,
    padding_of_first,
    shared_ids,
)
from frostline.features.computing import Computing, Decisions, computing, in_passes_of
from frostline.features.decoding import as_decoded, forget_kept, with_decoding
from frostline.features.feature_data import FeatureData
from frostline.features.filling import Filling, Progress
from frostline.features.keywords import Collate, CollatedSamples, NamedSamples, keyword_samples
from frostline.features.padding import Padding
from frostline.sharding import own_class
from frostline.store import (
    FeatureKey,
    Features,
    FeatureStore,
    StoredRows,
    ValueSpec,
    dtype_name,
)
from frostline.tuning import PLAIN
from frostline.world import World, agreed, decided, gathered, together, world_here

_TUNING_SAMPLES = 8


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
    world: World | None = None,
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
            error. Large pictures may then be decoded no further than their features need.
        storage: on disk; `"auto"` keeps every bit that was computed.
        batch_size: samples in a pass.
        progress: called with (rows done, rows to compute).
        compute: how to compute, where that was decided before.
        as_targets: makes the tensor of the targets; by default class indices.
        padding: how samples of different lengths are padded, where that was found before.
        world: the processes that share the rows; by default those that `torchrun` started with
            this one, which all call this. `frostline.world.ALONE` is this one by itself.
    Raises:
        ConfigError: `cut` is none; processes have other data, or a model with other weights.
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
    if not isinstance(cut, Cut):
        raise ConfigError(
            f"features are extracted through a Cut, got {a_type(cut)}. Cut the model on an example "
            "batch, and give that."
        )
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    device = device_of(cut.suffix.model)
    # Who holds parts of one model computes with all who do.
    is_own = world is not None and not cut.prefix.in_step
    among = world if world is not None and is_own else world_here(str(device))
    with together(among) if world is None else nullcontext():
        samples = keyword_samples(cut, dataset, views=views, collate=collate, as_targets=as_targets)
        padding = padding or padding_of_first(among, cut, samples, device)
        if compute is None:
            choose = partial(
                _chosen, cut, samples, store, precision=precision, batch_size=batch_size
            )
            compute = computing_of_first(among, cut, choose, device)
        samples = as_decoded(samples, compute.tuned.form.decoding)
        specs = _specs(cut, compute, storage)
        extraction = _Extraction(samples, store, compute, specs, padding, among, progress)
        return extraction.run(as_targets)


def _chosen(
    cut: Cut, samples: Samples, store: FeatureStore, *, precision: PrefixPrecision, batch_size: int
) -> Computing:
    """How to compute the prefix, by measuring on a few samples."""
    planned, decisions = len(samples) * samples.views, Decisions(store.root)
    compute = computing(
        cut,
        lambda: inputs_of(samples, range(min(_TUNING_SAMPLES, len(samples)))),
        precision=precision,
        batch_size=batch_size,
        device=device_of(cut.suffix.model),
        planned_samples=planned,
        decisions=decisions,
    )
    compute = with_decoding(
        compute, samples, precision=precision, planned_samples=planned, decisions=decisions
    )
    if precision == "exact":
        return in_passes_of(compute, min(batch_size, len(samples)))
    return compute


@final
@dataclass
class _Extraction:
    """One call of `extract`."""

    _samples: Samples
    _store: FeatureStore
    _compute: Computing
    _specs: tuple[ValueSpec, ...]
    _padding: Padding
    _world: World
    _progress: Progress | None
    _seconds: float = 0.0

    def run(self, as_targets: AsTargets) -> FeatureData:
        cut, samples, world = self._compute.cut, self._samples, self._world
        features, why, ids = self._opened()
        rows: StoredRows | None = None
        with suppress(StoreError):  # some are missing or damaged
            rows = features.read(ids) if ids else None
        compute, specs, padding = self._compute, self._specs, self._padding
        filling = Filling(samples, compute, specs, padding, world, self._progress)
        if anywhere(world, rows is None):
            rows = self._filled(features, ids, filling)
        assert rows is not None  # in no process
        forget_kept(samples)
        measured = torch.tensor([[filling.computed, filling.storage_error]], dtype=torch.float64)
        by_rank, errors = gathered(world, measured).T.tolist()
        computed = tuple(map(int, by_rank))
        return FeatureData(
            rows,
            _targets(samples, as_targets),
            samples.views,
            sum(computed),
            self._seconds,
            compute.words,
            rows.nbytes,
            max(errors),
            why if any(computed) else "",
            tuple(map(samples.name, range(len(samples)))),
            *self._shares(filling),
            padding,
            lengths_of(samples),
            cut.frontier.names if cut.prefix.spec.keywords else (),
            computed,
        )

    def _opened(self) -> tuple[Features, str, list[bytes]]:
        """The key in the store, why rows may be missing, and the ids of all, if any is there."""
        samples, world, failed = self._samples, self._world, None
        try:
            self._compute.cut.check_current()
            key = self._key()
            note = {"model": own_class(self._compute.cut.suffix.model).__name__}
            note |= {"line": self._compute.cut.why, "form": self._compute.words}
            features = self._store.open(key, self._specs, note=note)
        except FrostlineError as error:
            failed = error
        agreed(world, failed)
        check_alike(world, {**key.parts, "samples": f"{len(samples)} in {samples.views} views"})
        every = range(len(samples) * samples.views)
        there = decided(world, not features.is_empty())
        ids = shared_ids(world, samples, every) if there else []
        why = "rows of these samples were missing" if ids else self._store.explain_miss(key)
        return features, why, ids

    def _key(self) -> FeatureKey:
        specs = self._specs
        parts = {
            **self._compute.key,
            "transform": self._samples.transform,
            "values": " ".join(f"{dtype_name(spec.dtype)} {list(spec.shape)}" for spec in specs),
            "storage": " ".join(dtype_name(spec.stored) for spec in specs),
        }
        return FeatureKey(parts)

    def _filled(self, features: Features, ids: list[bytes], filling: Filling) -> StoredRows:
        """All rows, once those that are missing were computed."""
        start, failed = time.perf_counter(), None
        work = decided(self._world, secrets.token_hex(8))
        ids = filling.fill(features, ids, work)
        self._seconds = time.perf_counter() - start
        try:
            rows = features.read(ids)
        except FrostlineError as error:
            failed = error
        agreed(self._world, failed)
        return rows

    def _shares(self, filling: Filling) -> tuple[float, float]:
        """Seconds of loading and of computing; no more than there were, if threads shared them."""
        loading, computing = sum(filling.loading), sum(filling.computing)
        share = min(1.0, self._seconds / (loading + computing or 1.0))
        return loading * share, computing * share


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
