"""Batches of features: read from a store, computed as they come, or only the last so."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NoReturn, final

import torch
from torch import Tensor

from frostline.data import Batch, Batches, Order, Samples, inputs_of
from frostline.errors import ConfigError
from frostline.features.computing import Computing
from frostline.features.padding import Padding
from frostline.store import StoredRows, dtype_name
from frostline.units import format_bytes, format_seconds
from frostline.world import ALONE, World


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
        padding: how samples of different lengths are padded in batches.
        lengths: of the samples, as far as the data set says.
    """

    rows: StoredRows
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
    padding: Padding = field(default_factory=Padding)
    lengths: Sequence[int] | None = None

    def __repr__(self) -> str:
        values = " and ".join(
            f"[{', '.join('?' if n is None else str(n) for n in spec.shape)}] "
            f"{dtype_name(spec.dtype)}"
            for spec in self.rows.specs
        )
        views = f" in {self.views} views" if self.views > 1 else ""
        return (
            f"Features of {len(self)} samples{views}: {values} each, {format_bytes(self.nbytes)}\n"
            f"computed in {self.form}; {self.computed} rows now, {format_seconds(self.seconds)}\n"
            "read with: for batch in features.batches(batch_size=32, shuffle=True).epoch(0)"
        )

    def __len__(self) -> int:
        """Samples, not views."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        """The values of one sample's first view, and its class."""
        values = self.rows.gather(torch.tensor([index]))
        return tuple(value[0] for value in values), int(self.targets[index])

    def batches(
        self, *, batch_size: int, shuffle: bool, seed: int = 0, world: World = ALONE
    ) -> FeatureBatches:
        """The features in the batches in which a plain loop would see the samples."""
        order = Order(len(self), batch_size, shuffle, seed, world, self.lengths)
        return FeatureBatches(self, order)


@final
@dataclass(frozen=True)
class FeatureBatches:
    """Stored features in batches: one gather for each, no work per sample."""

    data: FeatureData
    order: Order

    def __iter__(self) -> NoReturn:
        raise ConfigError(
            "batches go by epoch, each with its own order and view. Go through "
            "batches.epoch(0), then batches.epoch(1), and so on."
        )

    def __len__(self) -> int:
        return len(self.order)

    @property
    def samples(self) -> int:
        return len(self.data)

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        data = self.data
        first = (epoch % data.views) * len(data)
        name_of = data.names.__getitem__
        for indices in self.order.epoch(epoch, start=start):
            rows = indices + first if first else indices
            values = data.rows.gather(rows, pads=data.padding.pads)
            names = tuple(map(name_of, indices.tolist()))
            yield Batch(values, data.targets[indices], names)


@final
@dataclass(frozen=True)
class PrefixedBatches:
    """The batches of `whole`, with the frontier's values in place of the inputs.

    An epoch begins with a proof that the cut is still one of its model.
    """

    whole: Batches
    compute: Computing

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def samples(self) -> int:
        return self.whole.samples

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        return self._computed(self.whole.epoch(epoch, start=start))

    def _computed(self, whole: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        self.compute.cut.check_current()
        with closing(whole) as batches:
            for batch in batches:
                yield Batch(self.compute(batch.inputs), batch.targets, batch.names)


@final
@dataclass(frozen=True)
class LiveLastBatches:
    """Stored features, but for the last batch of an epoch where that has fewer samples.

    For float32 kernels that give other last bits for another number of rows.
    """

    stored: FeatureBatches
    source: Samples
    compute: Computing
    _kept: list[tuple[Tensor, tuple[Tensor, ...]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def samples(self) -> int:
        return self.stored.samples

    def epoch(self, epoch: int, /, *, start: int = 0) -> Generator[Batch, None, None]:
        stored = self.stored
        view = epoch % stored.data.views
        last = stored.order.epoch(epoch)[-1] + view * stored.samples
        size = min(stored.order.batch_size, stored.samples)
        for batch in stored.epoch(epoch, start=start):
            fits = len(batch.targets) == size
            yield batch if fits else Batch(self._values(last), batch.targets, batch.names)

    def _values(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Computed once for rows that are the same in each epoch, as in validation."""
        if not self._kept or not torch.equal(self._kept[0][0], rows):
            self.compute.cut.check_current()
            values = self.compute(inputs_of(self.source, rows.tolist()))
            self._kept[:] = [(rows, tuple(value.cpu() for value in values))]
        return self._kept[0][1]
