"""The graph run on a few samples: which values share memory, which mix samples, what each costs.

Nothing here is assumed of an operation: aliases are seen as shared storage, and whether a value
of a sample depends on its batch mates is tried, with the samples in other places and beside
other mates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from frostline.cutting.tracing import Traced

_ROWS = 3
# Floating-point sums in another order differ in the last bits; a real dependence is far above.
_TOLERANCE = 1e-4


@final
@dataclass(frozen=True)
class Trial:
    """What was seen.

    Attributes:
        values: what each node gave on the trial samples.
        storage: node -> number of the storage its tensor lives in; nodes of one number alias.
        flops: of each node, for one sample.
        mixed: values of a sample that depend on its batch mates or on chance.
    """

    values: Mapping[fx.Node, Any]
    storage: Mapping[fx.Node, int]
    flops: Mapping[fx.Node, float]
    mixed: frozenset[fx.Node]


def run_trial(traced: Traced, tensors: list[Tensor], *, mixing: bool) -> Trial:
    """Run the graph on a few samples made from `tensors`; the model's buffers may move.

    Args:
        mixing: also find the values that depend on batch mates, which takes two more runs.
    """
    samples = _samples(tensors)
    with (
        torch.random.fork_rng(devices=_devices(samples)),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        runner = _Runner(traced, counter)
        # A graph may write into its inputs.
        runner.run(*(sample.clone() for sample in samples), enable_io_processing=False)
    values = dict(runner.env)
    with torch.random.fork_rng(devices=_devices(samples)), torch.no_grad():
        mixed = _mixed(traced, samples, runner.first) if mixing else frozenset()
    storage = {
        node: value.untyped_storage().data_ptr()
        for node, value in values.items()
        if isinstance(value, Tensor)
    }
    rows = samples[0].shape[0]
    flops = {node: count / rows for node, count in runner.flops.items()}
    return Trial(values, storage, flops, mixed)


class _Runner(fx.Interpreter):
    """Keeps every node's value, and counts its floating-point operations."""

    def __init__(self, traced: Traced, counter: FlopCounterMode) -> None:
        super().__init__(traced.module, garbage_collect_values=False)
        self.flops: dict[fx.Node, float] = {}
        self.first: dict[fx.Node, Tensor] = {}  # as computed, before anything writes into it
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        value = super().run_node(n)
        self.flops[n] = self._counter.get_total_flops() - before
        if isinstance(value, Tensor) and is_per_sample(n):
            self.first[n] = value.clone()
        return value


class _Rearranged(fx.Interpreter):
    """Runs the samples in another order, operation by operation, and notes what came out otherwise.

    After each operation its value is set to what it should be, so that an error in the last bits
    does not grow from one operation to the next.
    """

    def __init__(self, traced: Traced, first: Mapping[fx.Node, Tensor], places: list[int]) -> None:
        super().__init__(traced.module, garbage_collect_values=False)
        self.mixed: set[fx.Node] = set()
        self._first = first
        self._places = torch.tensor(places)

    def run_node(self, n: fx.Node) -> Any:
        inputs = [self.env[a] for a in n.all_input_nodes]
        scale = max([_largest(i) for i in inputs if isinstance(i, Tensor)], default=0.0)
        value = super().run_node(n)
        if n in self._first:
            expected = self._first[n][self._places.to(value.device)]
            if not _alike(expected, value, scale):
                self.mixed.add(n)
            if not any(s == 0 < d - 1 for s, d in zip(value.stride(), value.shape, strict=True)):
                value.copy_(expected)
        return value


def is_per_sample(node: fx.Node) -> bool:
    """Whether the node's tensor has one row for each sample, and no other dimension counts them."""
    batch = _batch_symbol(node)
    value = node.meta.get("val")
    if batch is None or not isinstance(value, Tensor) or value.dim() == 0:
        return False
    first, rest = value.shape[0], value.shape[1:]
    return _expression(first) == batch and not any(batch in _symbols(size) for size in rest)


def row_shape(node: fx.Node) -> tuple[int | None, ...]:
    """Shape of one sample's value; None for a size that varies with the sample."""
    return tuple(
        None if isinstance(size, torch.SymInt) else int(size) for size in node.meta["val"].shape[1:]
    )


def _batch_symbol(node: fx.Node) -> Any:
    first = next(iter(node.graph.find_nodes(op="placeholder")))
    return _expression(first.meta["val"].shape[0])


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _symbols(size: Any) -> frozenset[Any]:
    return frozenset(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else frozenset()


def _samples(tensors: list[Tensor]) -> list[Tensor]:
    """Three samples that differ: those of the example, with a little noise on real numbers."""
    draw = torch.Generator().manual_seed(0)
    rows = tensors[0].shape[0]
    chosen = torch.arange(_ROWS) % rows
    return [_sample(tensor, chosen, rows, draw) for tensor in tensors]


def _sample(tensor: Tensor, chosen: Tensor, rows: int, draw: torch.Generator) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[0] != rows:
        return tensor.detach()
    few = tensor.detach()[chosen.to(tensor.device)].clone()
    if not few.is_floating_point():
        return few
    noise = torch.randn(few.shape, generator=draw).to(few)
    scale = few.abs().mean().clamp(min=0.1)
    return few + 0.1 * scale * noise


def _mixed(
    traced: Traced, samples: list[Tensor], first: Mapping[fx.Node, Tensor]
) -> frozenset[fx.Node]:
    rows = samples[0].shape[0]
    found: set[fx.Node] = set()
    for places in ([2, 1, 0], [0, 0, 0]):
        order = torch.tensor(places)
        moved = [
            s[order.to(s.device)] if s.dim() and s.shape[0] == rows else s.clone() for s in samples
        ]
        runner = _Rearranged(traced, first, places)
        runner.run(*moved, enable_io_processing=False)
        found |= runner.mixed
    return frozenset(found)


def _alike(one: Tensor, other: Tensor, scale: float) -> bool:
    """Whether two values are equal but for the order of summation over inputs of that size."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    room = max(scale, _largest(one)) * _TOLERANCE
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=room, equal_nan=True)


def _largest(tensor: Tensor) -> float:
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    return float(tensor.detach().abs().nan_to_num(0, 0, 0).max())


def _devices(samples: list[Tensor]) -> list[torch.device]:
    return [s.device for s in samples[:1] if s.device.type == "cuda"]


def sizes_of(node: fx.Node) -> Iterator[tuple[int, Any]]:
    """Each dimension of the node's tensor with its symbolic size."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        for dim, size in enumerate(value.shape):
            yield dim, _expression(size)
