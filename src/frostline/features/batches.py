"""Batches of features that are computed as they come: all of them, or the last of an epoch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
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
                yield replace(batch, inputs=self.compute(batch.inputs))


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
        stored, last = self.stored, len(self) - 1
        view = epoch % stored.data.views
        fits = stored.samples % stored.order.batch_size == 0 or not last
        for number, batch in enumerate(stored.epoch(epoch, start=start), start):
            if fits or number < last:
                yield batch
                continue
            rows = stored.order.wholes(epoch, start=last)[0] + view * stored.samples
            yield replace(batch, inputs=self._own(self._values(rows)))

    def _own(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """This process's rows of a whole batch, which was computed as one process does."""
        order = self.stored.order
        world, is_spare = order.world, order.is_spare(len(self) - 1)
        chosen = slice(0, 1) if is_spare else slice(world.rank, None, world.size)
        return tuple(value[chosen] for value in values) if world.size > 1 else values

    def _values(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Computed once for rows that are the same in each epoch, as in validation."""
        if not self._kept or not torch.equal(self._kept[0][0], rows):
            self.compute.cut.check_current()
            values = self.compute(inputs_of(self.source, rows.tolist()))
            self._kept[:] = [(rows, tuple(value.cpu() for value in values))]
        return self._kept[0][1]
