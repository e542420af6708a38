"""Filling a store with what it lacks, beside other processes that fill it too."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, final

import torch
from torch import Tensor

from frostline.cutting import LABELS, Cut
from frostline.data import Samples, count_threads, ordered_map
from frostline.errors import FrostlineError
from frostline.features.agreeing import anywhere, exchanged, own_part
from frostline.features.computing import Computing
from frostline.features.padding import Padding, alone, padded
from frostline.store import PADS, Features, SharedParts, ValueSpec, Writer, storage_error
from frostline.tuning import PLAIN
from frostline.world import ALONE, World, agreed, gathered

Progress = Callable[[int, int], None]

_Loads = list[tuple[int, Callable[[], Any]]]  # rows of a batch, and what loads each
_Values = list[Tensor | list[Tensor]]  # of ragged values a tensor for each row
_Loaded = tuple[list[int], list[Any]]  # rows of a batch, and their samples
_Computed = tuple[list[int], _Values]  # rows of a batch, and their values

_NOBODYS = -1  # the row of a sample that is computed only because others compute
_CLAIMED_BATCHES = 4
_PARTS_EACH = 8  # at least, for each process, so that none waits long for another's last
_WAIT_SECONDS = 600.0
# A proof reads all tensors of the prefix, so for large ones not each batch has a proof of its own.
_PROOF_SHARE = 0.05  # of the time is what proofs may take
_MOST_BYTES = 256 << 20  # of rows that wait for one


@final
@dataclass
class Filling:
    """Computing the rows that one key of a store lacks.

    Processes of one world share the rows in parts of a few batches, each taken when its process
    has nothing to do; a row of one that is killed is free again. The batches are those of one
    process alone, and so are the bits.

    Attributes:
        computed: rows that this process computed.
        storage_error: relative error of the storage dtype, on the first batch.
        loading, computing: seconds of each batch; lists, since threads append.
    """

    samples: Samples
    compute: Computing
    specs: tuple[ValueSpec, ...]
    padding: Padding
    world: World
    progress: Progress | None
    computed: int = 0
    storage_error: float = 0.0
    loading: list[float] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)

    @property
    def _in_step(self) -> bool:
        """Whether all processes make each pass together, since each holds a part of the model."""
        return self.world.size > 1 and self.compute.cut.prefix.in_step

    def fill(self, features: Features, known: list[bytes], work: str) -> list[bytes]:
        """Compute what is missing; gives the ids of all rows.

        Args:
            known: the ids of all rows, where they were found out before; else none.
            work: a name for this, the same for all processes that share it and for no others.
        """
        every = range(len(self.samples) * self.samples.views)
        missing: Sequence[int] = features.missing(known) if known else every
        missing = self.padding.longest_first(missing)
        ids, found, turn, waited_for = known, dict(enumerate(known)), 0, list[bytes]()
        while anywhere(self.world, bool(missing)):
            is_whole = turn or self._in_step
            rows = missing if is_whole else self._divided(features, missing)
            before = self.computed
            found.update(self._filled(features, rows, f"{work} {turn}", waited_for))
            ids, turn = [found[row] for row in every], turn + 1
            missing = self.padding.longest_first(features.missing(ids))
            # What this process could not have others compute, who share no more than the store.
            waited_for = ids if missing and self.computed == before else []
        return ids

    def _divided(self, features: Features, rows: Sequence[int]) -> Sequence[int]:
        """Those that are this machine's, where each has a folder of its own for one address.

        What one machine computed reaches the others by the address when it is complete, so they
        divide the rows beforehand. Machines that have no more than a folder of their own fill it.
        """
        size = self.compute.tuned.batch_size
        batches = own_part(self.world, features.place, -(-len(rows) // size))
        return rows[batches.start * size : batches.stop * size]

    def _filled(
        self, features: Features, rows: Sequence[int], work: str, waited_for: list[bytes]
    ) -> dict[int, bytes]:
        """Compute what is free, and wait for what others compute; an error is one of all.

        Whoever fails lets go of what it claimed, and others take it. All keep their claims until
        all are done, and have stored their rows when this ends.

        Returns: the ids of all rows that any process looked at.
        """
        failed, found = None, dict[int, bytes]()
        with ExitStack() as held:
            try:
                writer = held.enter_context(features.writer())
                if waited_for:
                    writer.wait(waited_for, _WAIT_SECONDS)
                self._fill_parts(writer, rows, found, work)
            except FrostlineError as error:
                failed = error
                with suppress(FrostlineError):
                    held.close()
            agreed(self.world, failed)
            every = exchanged(self.world, found)
            try:
                held.close()
            except FrostlineError as error:
                failed = error
            agreed(self.world, failed)
        return every

    def _fill_parts(
        self, writer: Writer, missing: Sequence[int], found: dict[int, bytes], work: str
    ) -> None:
        size, most = self.compute.tuned.batch_size, _CLAIMED_BATCHES
        if self._in_step:
            missing = self._of_first(missing)
            computed = self._passes(self._dealt(writer, missing, found))

            def of_others() -> int:
                return self.computed * (self.world.size - 1)

            self._publish(writer, found, computed, of_others, len(missing))
            return
        if self.world.size == 1:
            self._fill_claimed(writer, missing, found, size * most)
            return
        batches = -(-len(missing) // size)
        rows = size * max(1, min(most, batches // (_PARTS_EACH * self.world.size)))
        parts = SharedParts(writer, f"{work} {rows} {len(missing)}", -(-len(missing) // rows))
        while True:
            self._fill_claimed(writer, missing, found, rows, parts)
            parts.finish()
            if parts.wait(_WAIT_SECONDS) != "free":
                return

    def _fill_claimed(
        self,
        writer: Writer,
        missing: Sequence[int],
        found: dict[int, bytes],
        size: int,
        parts: SharedParts | None = None,
    ) -> None:
        """Compute those of the missing rows that no other process is computing.

        Args:
            found: takes the ids of the rows that were looked at.
            size: rows of a part.
        """
        # Better one to a thread than one over all threads; but not in plain float32, whose last
        # bits may depend on the number of threads, and which may be modules of the user's own.
        form = self.compute.tuned.form.computing
        on_cpu = self.compute.device.type == "cpu" and form != PLAIN
        beside = on_cpu and 1 < torch.get_num_threads() <= count_threads(None)
        threads = torch.get_num_threads() if beside else 1
        batches = self._claimed(writer, missing, found, size, parts, threads=threads)
        computed = self._side_by_side(batches) if beside else self._overlapping(batches)

        def of_others() -> int:
            return parts.of_others * size if parts else 0

        self._publish(writer, found, computed, of_others, len(missing))

    def _publish(
        self,
        writer: Writer,
        found: Mapping[int, bytes],
        computed: Generator[_Computed, None, None],
        of_others: Callable[[], int],
        count: int,
    ) -> None:
        """Put into the store what is computed of `count` missing rows; others compute some."""
        world = self.world if self._in_step else ALONE
        with closing(computed), _Publisher(self.compute.cut, writer, world) as publisher:
            for rows, values in computed:
                if rows and not self.computed:
                    stored = zip(values, self.specs, strict=True)
                    errors = [storage_error(_joined(value), spec.storage) for value, spec in stored]
                    self.storage_error = max(errors)
                publisher.put([found[row] for row in rows], values if rows else [])
                self.computed += len(rows)
                if self.progress:
                    self.progress(min(self.computed + of_others(), count), count)

    def _claimed(
        self,
        writer: Writer,
        missing: Sequence[int],
        found: dict[int, bytes],
        size: int,
        parts: SharedParts | None,
        *,
        threads: int,
    ) -> Generator[_Loads, None, None]:
        """The missing rows in batches, claimed a part at a time: as many for each thread."""
        most = self.compute.tuned.batch_size
        for part in range(-(-len(missing) // size)) if parts is None else parts:
            rows = missing[part * size : (part + 1) * size]
            ids, loads = zip(*self.samples.read(rows), strict=True)
            found.update(zip(rows, ids, strict=True))
            mine = [(rows[place], loads[place]) for place in writer.claim(ids, len(ids))]
            del loads  # and with them the samples of rows that another process computes
            batch = most
            if mine and threads > 1:
                passes = -(-len(mine) // most)
                batch = -(-len(mine) // (passes + -passes % threads))
            for first in range(0, len(mine), batch):
                yield mine[first : first + batch]

    def _of_first(self, rows: Sequence[int]) -> list[int]:
        """Those of the first process: another may have seen others missing, a moment later."""
        own = torch.tensor(rows if self.world.rank == 0 else [], dtype=torch.long)
        shared: list[int] = gathered(self.world, own).tolist()
        return shared

    def _dealt(
        self, writer: Writer, missing: Sequence[int], found: dict[int, bytes]
    ) -> Generator[_Loads, None, None]:
        """The missing rows in batches, as many for each process.

        Where none is left for this one, or others outside compute them, it is a sample whose row
        nobody keeps.
        """
        world, size = self.world, self.compute.tuned.batch_size
        for start in range(world.rank * size, len(missing) + world.rank * size, world.size * size):
            rows = missing[start : start + size]
            ids, loads = zip(*self.samples.read(rows or missing[:1]), strict=True)
            found.update(zip(rows, ids, strict=False))
            free = writer.claim(ids, len(ids)) if rows else []
            yield [(rows[place], loads[place]) for place in free] or [(_NOBODYS, loads[0])]

    def _passes(self, batches: Iterable[_Loads]) -> Generator[_Computed, None, None]:
        """Values batch by batch, which all processes compute together.

        Before each pass they tell whether one could not load its samples, for it would be waited
        for.
        """
        with closing(self._loaded(batches)) as loaded:
            while batch := self._next_of_all(loaded):
                rows, samples = batch
                yield [row for row in rows if row != _NOBODYS], self._values(samples)

    def _next_of_all(self, loaded: Iterator[_Loaded]) -> _Loaded | None:
        batch, failed = None, None
        try:
            batch = next(loaded, None)
        except FrostlineError as error:
            failed = error
        agreed(self.world, failed)
        return batch

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
            self.loading.append(time.perf_counter() - start)
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
        collate, cut = self.samples.collate, self.compute.cut
        whole = [v.cpu() for v in self.compute.rows(samples, collate)]
        values: _Values = list(whole)
        if self.padding.form or any(spec.ragged_count for spec in self.specs):
            each = [alone(cut, collate, one) for one in samples]
            for inputs in each:
                self.padding.check(inputs, self.samples)
            values = self.padding.own(cut, whole, each)
        values = [v for v, of in zip(values, cut.frontier.values, strict=True) if of.name != LABELS]
        self.computing.append(time.perf_counter() - start)
        return values

    def _overlapping(self, batches: Iterable[_Loads]) -> Generator[_Computed, None, None]:
        """Values batch by batch; the next samples are loaded in threads meanwhile."""
        with closing(self._loaded(batches)) as loaded:
            for rows, samples in loaded:
                yield rows, self._values(samples)

    def _loaded(self, batches: Iterable[_Loads]) -> Generator[_Loaded, None, None]:
        """Samples batch by batch, loaded in threads while the caller has another batch."""
        pending: deque[list[int]] = deque()

        def loads() -> Iterator[Callable[[], Any]]:
            for batch in batches:
                pending.append([row for row, _ in batch])
                yield from (load for _, load in batch)

        ahead = 2 * self.compute.tuned.batch_size
        with closing(ordered_map(lambda load: load(), loads(), ahead=ahead)) as loaded:
            start = time.perf_counter()
            for sample in loaded:
                rows = pending.popleft()
                samples = [sample, *(next(loaded) for _ in rows[1:])]
                self.loading.append(time.perf_counter() - start)
                yield rows, samples
                start = time.perf_counter()


def _joined(value: Tensor | list[Tensor]) -> Tensor:
    return value if isinstance(value, Tensor) else padded(value, PADS)


@final
@dataclass
class _Publisher:
    """Computed rows, visible in groups, each once the cut is proven to be the one of its key.

    At the end of its block, and where that fails, what waits is published. Processes that hold
    parts of one model prove it together, and only where none fails.
    """

    _cut: Cut
    _writer: Writer
    _world: World
    _waiting: list[tuple[list[bytes], _Values]] = field(default_factory=list)
    _bytes: int = 0
    _proof_seconds: float = 0.0
    _proven_at: float = field(default_factory=time.perf_counter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and self._world.size > 1:
            return
        # The first failure is the one to raise.
        with suppress(FrostlineError) if kind else nullcontext():
            self.publish()

    def put(self, row_ids: list[bytes], values: _Values) -> None:
        """Keep rows, and publish all that wait where it is time for a proof."""
        self._waiting.append((row_ids, values))
        self._bytes += sum(row.nbytes for value in values for row in value)
        since = time.perf_counter() - self._proven_at
        is_due = self._proof_seconds <= _PROOF_SHARE * since or self._bytes > _MOST_BYTES
        if anywhere(self._world, is_due):
            self.publish()

    def publish(self) -> None:
        """Prove, then store what waits; of a cut that is another one now it is dropped."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:  # in no process, since all put as often
            return
        start = time.perf_counter()
        self._cut.check_current()
        self._proven_at = time.perf_counter()
        self._proof_seconds = self._proven_at - start
        for row_ids, values in waiting:
            if row_ids:
                self._writer.put(row_ids, values)
