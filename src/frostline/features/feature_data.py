"""The features of a data set: a data set themselves, for our loop and for any trainer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frostline.cutting import LABELS
from frostline.data import Batch, NamesAt, Order
from frostline.errors import ConfigError
from frostline.features.loading import EpochSampler, Rows
from frostline.features.padding import Padding, padded
from frostline.store import StoredRows, dtype_name
from frostline.units import format_bytes, format_seconds
from frostline.world import ALONE, World


@final
@dataclass(frozen=True, eq=False)
class FeatureData(Dataset[Any]):
    """The features of a data set, in the order of its samples; a `Dataset` itself.

    A sample is what the suffix takes: where the cut was made with keyword inputs a mapping by the
    names of the frontier, with `labels` where there are targets; else `(value, target)`, or
    `((value, ...), target)` where several values cross the line.

    Attributes:
        rows: the stored rows; view `v` of sample `i` is row `v * samples + i`.
        targets: of the samples, as the task takes them: class indices are int64; of a data set of
            mappings its labels as they are, none where it has none.
        views: how many fixed views each sample has; epochs walk through them in turn.
        computed: rows that this call computed, in all processes that share it; 0 means no forward
            pass of the prefix over data.
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
        inputs: what the suffix calls the values, in its order; empty where it goes by position.
        computed_by: of `computed`, how many each process computed, in the order of their ranks.
    """

    rows: StoredRows
    targets: Tensor | tuple[Tensor, ...]
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
    inputs: tuple[str, ...] = ()
    computed_by: tuple[int, ...] = ()

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
            "read with: for batch in features.loader(batch_size=64, shuffle=True)"
        )

    def __len__(self) -> int:
        """Samples, not views."""
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        """One sample, in its first view."""
        row = range(len(self))[index]
        return self.__getitems__([row])[0]

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Several, gathered at once; padded to the longest of them."""
        return Rows(self._batch(torch.tensor(indices)), len(indices))

    def loader(
        self,
        batch_size: int = 64,
        shuffle: bool = True,
        *,
        seed: int = 0,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        """Batches as the suffix takes them, straight from the maps, without workers.

        A `DataLoader` with all that trainers ask of one: `len`, `batch_size`, `dataset` and a
        `sampler` with `set_epoch`. Lightning takes it as it is, `accelerator.prepare` and
        transformers' Trainer take it or the features themselves, with their own order then. The
        order depends on the seed and the epoch alone, and torch's generator is not moved; epochs
        follow each other from 0 unless `set_epoch` says otherwise, and walk through the views.
        Samples of different lengths are shuffled so that those of like length go together.

        Args:
            seed: of the order.
            drop_last: leave out a last batch that is smaller.
        Raises:
            ConfigError: `batch_size` is less than 1.

        Example:
            >>> features = fl.extract(fl.cut(model, images), data, "features")
            >>> for values, classes in features.loader(batch_size=8):
            ...     loss = nn.functional.cross_entropy(cut.suffix(values), classes)
        """
        if batch_size < 1:
            raise ConfigError(f"asked for batches of {batch_size} samples. Use 1 or more.")
        lengths = self.padding.lengths or self.lengths
        order = Order(len(self), batch_size, shuffle, seed, lengths=lengths)
        return DataLoader(
            self,
            batch_size=batch_size,
            sampler=EpochSampler(order, self.views),
            collate_fn=self.collate,
            drop_last=drop_last,
            generator=torch.Generator(),  # of worker seeds, which would move torch's own
        )

    def collate(self, samples: Sequence[Any]) -> Any:
        """Samples of these features as a batch; where they were gathered together, that one."""
        return samples.batch if isinstance(samples, Rows) else self._joined(samples, LABELS)

    def batches(
        self, *, batch_size: int, shuffle: bool, seed: int = 0, world: World = ALONE
    ) -> FeatureBatches:
        """The features in the batches in which a plain loop would see the samples."""
        order = Order(len(self), batch_size, shuffle, seed, world, self.lengths)
        return FeatureBatches(self, order)

    def values(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What crosses the line at these rows, in the suffix's order, each `(batch, *shape)`."""
        pads = self.padding.pads
        if LABELS not in self.inputs:
            return self.rows.gather(rows, pads=pads)
        place = self.inputs.index(LABELS)
        kept = pads.without(place)
        values = self.rows.gather(rows, pads=kept)
        return (*values[:place], self.targets_of(rows % len(self)), *values[place:])

    def targets_of(self, samples: Tensor) -> Tensor:
        """Of these samples, padded where they are as long as the samples are."""
        if isinstance(self.targets, Tensor):
            return self.targets[samples] if len(self.targets) else self.targets
        own = [self.targets[sample] for sample in samples.tolist()]
        return padded(own, self.padding.pads, fill=self._fill(LABELS))

    def _batch(self, rows: Tensor) -> Any:
        values = self.values(rows)
        if not self.inputs:
            return values[0] if len(values) == 1 else values, self.targets_of(rows % len(self))
        named = dict(zip(self.inputs, values, strict=True))
        if len(self.targets) and LABELS not in named:
            named[LABELS] = self.targets_of(rows % len(self))
        return named

    def _joined(self, parts: Sequence[Any], name: str) -> Any:
        first = parts[0]
        if isinstance(first, Mapping):
            return {n: self._joined([part[n] for part in parts], n) for n in first}
        if isinstance(first, tuple | list):
            return tuple(self._joined(each, name) for each in zip(*parts, strict=True))
        tensors = [torch.as_tensor(part) for part in parts]
        if len({tensor.shape for tensor in tensors}) == 1:
            return torch.stack(tensors)
        return padded(tensors, self.padding.pads, fill=self._fill(name))

    def _fill(self, name: str) -> float:
        """The number at padded places of a value."""
        fills = self.padding.pads.fills
        return fills[self.inputs.index(name)] if fills and name in self.inputs else 0.0


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
        for number, indices in enumerate(self.order.epoch(epoch, start=start), start):
            values = data.values(indices + first if first else indices)
            names = NamesAt(data.names, indices)
            targets, order = data.targets_of(indices), self.order
            yield Batch(values, targets, names, order.is_spare(number), order.count(number))
