"""Batches of features that are computed as they come: all of them, or the last of an epoch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from frostline.data import Batch, Batches, Samples, inputs_of
from frostline.features.computing import Computing
from frostline.features.feature_data import FeatureBatches


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
