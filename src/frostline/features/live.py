"""Batches whose frozen part is computed as they come, in the tuned form; nothing is stored."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import final

from frostline.data import Batch, Batches
from frostline.features.computing import Computing


@final
@dataclass(frozen=True)
class PrefixedBatches:
    """The batches of `whole`, with the frontier's values in place of the inputs."""

    whole: Batches
    compute: Computing

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def samples(self) -> int:
        return self.whole.samples

    def epoch(self, epoch: int, /) -> Generator[Batch, None, None]:
        """The batches of one epoch, counted from 0."""
        with closing(self.whole.epoch(epoch)) as batches:
            for batch in batches:
                yield Batch(self.compute(batch.inputs), batch.targets, batch.names)
