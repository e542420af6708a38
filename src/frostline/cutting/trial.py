"""The graph run on a few samples: which values share memory, which mix samples, what each costs.

Nothing here is assumed of an operation: aliases are seen as shared storage, and whether a value
of a sample depends on its batch is tried, with the samples in other places, beside other mates
and in a smaller batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, fx

from frostline.cutting import effects
from frostline.cutting.effects import upwards
from frostline.cutting.layouts import RowLayout, layouts_of
from frostline.cutting.regions import entered
from frostline.cutting.tracing import Traced
from frostline.schemas import aliased
from frostline.wrapped import memory_of

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

_ROWS = 3
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
# Beside the three samples in their order, each of these leaves out two of them, puts others in
# the first and the last place, and is a smaller batch: a sum, a maximum, a roll, a flip, the
# first or last sample, or the size of the batch comes out otherwise in one of the two.
REARRANGED = ([2, 2], [0, 0])
# Floating-point sums in another order differ in the last bits; a real dependence is far above.
_TOLERANCE = 1e-4


@final
@dataclass(frozen=True)
class Observed:
    """What was seen of a graph.

    Attributes:
        traced: the graph.
        samples: what the graph was run on.
        values: what each node gave, as it is after the whole forward.
        storage: node -> number of the storage its tensor lives in; nodes of one number alias.
        flops: of each node, for one sample.
        computed: values with a row for each sample, before anything wrote into them.
        noised: those whose rows were all alike, as they were made to differ.
    """

    traced: Traced
    samples: tuple[Tensor, ...]
    values: Mapping[fx.Node, Any]
    storage: Mapping[fx.Node, int]
    flops: Mapping[fx.Node, float]
    computed: Mapping[fx.Node, Tensor]
    noised: Mapping[fx.Node, Tensor]

    @cached_property
    def members(self) -> Mapping[int, list[fx.Node]]:
        """Storage -> the nodes whose tensors live in it, in the graph's order."""
        found = defaultdict[int, list[fx.Node]](list)
        for node, storage in self.storage.items():
            found[storage].append(node)
        return found

    def written(self, node: fx.Node) -> list[int]:
        """Storages that the operation writes into."""
        return [self.storage[base] for base in aliased(node, written=True) if base in self.storage]


def run_trial(traced: Traced, tensors: list[Tensor]) -> Observed:
    """Run the graph on a few samples made from `tensors`; the model's buffers may move."""
    from torch.utils.flop_counter import FlopCounterMode  # and with it triton, where it is there

    samples = few_samples(tensors)
    with _chance_kept(samples), FlopCounterMode(display=False) as counter:
        runner = _Runner(traced, samples[0], counter)
        # A graph may write into its inputs.
        runner.run(*(sample.clone() for sample in samples), enable_io_processing=False)
    values = dict(runner.env)
    # Nothing is freed during the run, so one address is one memory.
    storage = {
        node: memory_of(value) for node, value in values.items() if isinstance(value, Tensor)
    }
    rows = samples[0].shape[0]
    flops = {node: count / rows for node, count in runner.flops.items()}
    seen = runner.computed, runner.noised
    return Observed(traced, tuple(samples), values, storage, flops, *seen)


def rearrange(
    trial: Observed, among: Collection[fx.Node]
) -> tuple[Collection[fx.Node], Mapping[fx.Node, RowLayout]]:
    """Run the samples in other batches and compare sample by sample.

    Args:
        among: nodes that samples reach; what depends on the batch's size alone is computed anew.
    Returns:
        The nodes that give a sample a value that depends on its batch, or on chance, and of the
        others how the samples lie in their values.
    """
    compared = trial.computed.keys() & set(among)
    fitting = {node: layouts_of(node) for node in compared}
    wanted = frozenset(upwards(among))
    for places in REARRANGED:
        moved = rows_at(trial.samples, places)
        with _chance_kept(moved):
            runner = _Rearranging(trial, wanted, fitting, torch.tensor(places))
            runner.run(*moved, enable_io_processing=False)
    # A dimension that counts other things as well may hold the samples in a third way.
    mixed = {node for node, left in fitting.items() if not left and len(layouts_of(node)) == 1}
    return mixed, {node: left[0] for node, left in fitting.items() if left}


def rows_at(samples: Sequence[Tensor], places: list[int]) -> list[Tensor]:
    """These rows of each tensor that has a row for each sample; copies."""
    rows = samples[0].shape[0]
    return [s[places].clone() if s.dim() and s.shape[0] == rows else s.clone() for s in samples]


def is_close(one: Tensor, other: Tensor, scale: float = 0.0) -> bool:
    """Whether two values are equal but for the order of summation over inputs of that size."""
    if torch.equal(one, other):
        return True
    if one.shape != other.shape or not one.is_floating_point():
        return False
    relative = max(_TOLERANCE, 2 * torch.finfo(one.dtype).eps)  # bfloat16 has 8 bits
    room = max(scale, _largest(one)) * relative
    return torch.allclose(one, other, rtol=relative, atol=room, equal_nan=True)


class _Runner(fx.Interpreter):
    """Keeps every node's value, and counts its floating-point operations."""

    def __init__(self, traced: Traced, sample: Tensor, counter: FlopCounterMode) -> None:
        super().__init__(traced.module, garbage_collect_values=False)
        self._sample = sample
        self.flops: dict[fx.Node, float] = {}
        self.computed: dict[fx.Node, Tensor] = {}
        self.noised: dict[fx.Node, Tensor] = {}
        self._counter = counter
        self._reached: set[fx.Node] = set()
        self._draw = torch.Generator().manual_seed(1)

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        with entered(n):
            value = super().run_node(n)
        counted = self._counter.get_total_flops() - before
        self.flops[n] = max(counted, self._recurrent_flops(n))
        inputs = () if effects.reads_only_shape(n) else n.all_input_nodes
        if n.op == "placeholder" or not self._reached.isdisjoint(inputs):
            self._reached.add(n)
        if isinstance(value, Tensor) and (layouts := layouts_of(n)):
            self.computed[n] = value.clone()
            alike = any(_rows_are_alike(way.rows(value, self._sample)) for way in layouts)
            if n in self._reached and alike and not _overlaps(value):
                # Rows that are all alike (equal tokens, a layer that starts at zero) would not
                # show that an operation mixes them.
                noise = torch.rand(value.shape, generator=self._draw).to(value)
                value.add_(noise * (0.1 * max(_largest(value), 1.0)))
                self.noised[n] = value.clone()
        return value

    def _recurrent_flops(self, node: fx.Node) -> float:
        """Two for each weight at each position; torch (2.15) counts no fused LSTM."""
        name = str(node.target).partition(".")[2].partition(".")[0]
        if node.op != "call_function" or name not in _RECURRENT:  # a layer may be called `gru`
            return 0.0
        first, *others = (self.env[argument] for argument in node.all_input_nodes)
        weights = sum(t.numel() for t in others if isinstance(t, Tensor) and t.dim() == 2)
        return 2.0 * weights * (int(first.numel()) / int(first.shape[-1]))


class _Rearranging(fx.Interpreter):
    """Runs the samples in another batch, operation by operation.

    From `fitting` it strikes the layouts in which a value comes out otherwise than in its first
    batch.

    After each operation its value is set to what it should be, so that an error in the last bits
    does not grow from one operation to the next.
    """

    def __init__(
        self,
        trial: Observed,
        wanted: Collection[fx.Node],
        fitting: dict[fx.Node, tuple[RowLayout, ...]],
        order: Tensor,
    ) -> None:
        super().__init__(trial.traced.module, garbage_collect_values=False)
        self._trial = trial
        self._wanted = wanted
        self._fitting = fitting
        self._order = order

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._wanted and n.op != "placeholder":
            return None
        with entered(n):
            value = super().run_node(n)
        if self._fitting.get(n):
            self._fitting[n] = tuple(a for a in self._fitting[n] if self._fits(n, value, a))
            if self._fitting[n] and not _overlaps(value):
                meant = self._trial.noised.get(n, self._trial.computed[n])
                value.copy_(self._moved(meant, self._fitting[n][0]))
        return value

    def _fits(self, node: fx.Node, value: Tensor, layout: RowLayout) -> bool:
        expected = self._moved(self._trial.computed[node], layout)
        if torch.equal(expected, value):
            return True
        # How large the weights are is looked up only where bits differ: they may be many.
        scale = max((_largest(self.env[a]) for a in node.all_input_nodes), default=0.0)
        return is_close(expected, value, scale)

    def _moved(self, tensor: Tensor, layout: RowLayout) -> Tensor:
        """The value as it should be in this batch."""
        rows = layout.rows(tensor, self._trial.samples[0])
        moved: Tensor = layout.restored(rows.index_select(0, self._order.to(rows.device)))
        return moved


def few_samples(tensors: list[Tensor]) -> list[Tensor]:
    """Three samples that differ: those of the example, with a little noise on real numbers."""
    draw = torch.Generator().manual_seed(0)
    rows = tensors[0].shape[0]
    samples = []
    for tensor in tensors:
        few = tensor.detach()
        if tensor.dim() and tensor.shape[0] == rows:
            few = few[torch.arange(_ROWS, device=few.device) % rows]
            if few.is_floating_point():
                noise = torch.randn(few.shape, generator=draw).to(few)
                few = few + 0.1 * few.abs().mean().clamp(min=0.1) * noise
        samples.append(few)
    return samples


@contextmanager
def _chance_kept(samples: list[Tensor]) -> Iterator[None]:
    devices = [s.device for s in samples[:1] if s.device.type == "cuda"]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield


def _rows_are_alike(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel() or value.shape[0] < 2:
        return False
    return any(torch.equal(value[i], value[j]) for i, j in ((0, 1), (1, -1), (0, -1)))


def _overlaps(value: Tensor) -> bool:
    """Whether several places of the tensor are one number in memory, as `expand` makes them."""
    return any(s == 0 and d > 1 for s, d in zip(value.stride(), value.shape, strict=True))


def _largest(value: Any) -> float:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return 0.0
    ends = [abs(float(end)) for end in value.detach().aminmax()]  # one pass: weights may be many
    if all(map(isfinite, ends)):
        return max(ends)
    return float(value.detach().abs().nan_to_num(0, 0, 0).max())
