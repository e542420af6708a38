"""The graph in two: a prefix that gives the crossing values, and a suffix that takes them."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from frostline.cutting import effects
from frostline.cutting.fronts import add_check
from frostline.cutting.graphs import OpenGraph, open_graph, own_tensors
from frostline.cutting.layouts import (
    Layout,
    row_sizes,
    rows_back,
    rows_first,
    sizes_of,
    times_batch,
)
from frostline.cutting.offering import Unfollowed
from frostline.cutting.regions import close_regions
from frostline.cutting.sweep import is_constant
from frostline.cutting.tracing import Traced, operation
from frostline.errors import CutError


@final
@dataclass(frozen=True)
class Line:
    """Where the line runs in one graph.

    Attributes:
        below: frozen nodes of the prefix that samples reach.
        free: frozen nodes that depend on no sample; both halves may compute them.
        crossing: for each frontier value, the nodes that hold it; the first stands for all. None
            hold it in a graph that does without, as an evaluation without auxiliary outputs.
        layouts: for each frontier value, how the samples lie in it.
        values: what each node gave in the trial.
    """

    below: Collection[fx.Node]
    free: frozenset[fx.Node]
    crossing: tuple[tuple[fx.Node, ...], ...]
    layouts: tuple[Layout, ...]
    values: Mapping[fx.Node, Any]


def build_prefix(
    traced: Traced, line: Line, model: nn.Module
) -> tuple[OpenGraph, frozenset[fx.Node]]:
    """Flat inputs -> the crossing values; also the nodes of `traced` that it holds."""
    wanted = [nodes[0] for nodes in line.crossing]
    inputs = list(traced.module.graph.find_nodes(op="placeholder"))
    held = _needed([*wanted, *inputs], set(line.below) | line.free, line) | set(inputs)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in traced.nodes:
        if node in held:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    given = copies[inputs[0]]
    graph.output(
        tuple(
            rows_first(graph, copies[node], layout, given)
            for node, layout in zip(wanted, line.layouts, strict=True)
        )
    )
    closed, blocks = close_regions(graph)
    return open_graph(closed, traced.module, model, blocks), frozenset(held)


def build_suffix(traced: Traced, line: Line, model: nn.Module) -> OpenGraph:
    """The crossing values -> flat outputs.

    It never writes into the values it is given.

    Raises:
        CutError: it needs a size that no crossing value tells, or a value that does not cross.
    """
    return _Suffix(traced, line, model).build()


class _Suffix:
    def __init__(self, traced: Traced, line: Line, model: nn.Module) -> None:
        self.graph = fx.Graph()
        self._constants: dict[str, Any] = {}
        self._traced = traced
        self._model = model
        self._line = line
        self._copies: dict[fx.Node, fx.Node] = {}
        self._first: fx.Node | None = None
        self._written = {
            self._storage(base)
            for node in traced.nodes
            if node not in line.below
            for base in effects.written(node)
        }
        # Memory that any operation writes into has no one value to keep as a constant.
        self._changing = {
            self._storage(base) for node in traced.nodes for base in effects.written(node)
        }
        # What is computed from a tensor of the model is computed anew: it may be another one.
        self._own = own_tensors(traced.module, traced.module.graph, model)
        self._above = [
            n
            for n in traced.nodes
            if n not in line.below and n not in line.free and (n.op != "placeholder" or n.users)
        ]
        starts = [a for n in self._above for a in n.all_input_nodes if a in line.free]
        self._held = _needed(starts, line.free, line) | set(self._above)

    def build(self) -> OpenGraph:
        self._placeholders()
        for node in self._traced.nodes:
            given = node in self._copies  # a feature, or of equal content
            if node in self._held and not given and node.op != "output":
                self._copies[node] = self._copy(node)
        output = self._traced.module.graph.output_node()
        values: Any = fx.map_arg(output.args[0], self._find)
        self.graph.output(values)
        closed, blocks = close_regions(self.graph)
        return open_graph(closed, self._traced.module, self._model, {**self._constants, **blocks})

    def _placeholders(self) -> None:
        for number, nodes in enumerate(self._line.crossing):
            given = self.graph.placeholder(f"feature_{number}")
            self._first = self._first or given
            if not nodes:
                continue
            laid = self._as_laid_out(given, nodes[0], self._line.layouts[number])
            if any(self._storage(node) in self._written for node in nodes):
                # Whoever holds the feature keeps it as it is.
                laid = self.graph.call_function(torch.ops.aten.clone.default, (laid,))
            for node in nodes:
                self._copies[node] = laid

    def _storage(self, node: fx.Node) -> int:
        value = self._line.values.get(node)
        return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0

    def _as_laid_out(self, given: fx.Node, node: fx.Node, layout: Layout) -> fx.Node:
        """The node's value as it lies in the plain model; kernels may go by the strides."""
        aten, seen = torch.ops.aten, self._line.values[node]
        given = rows_back(self.graph, given, layout)
        if (order := _memory_order(seen)) is not None:
            back = [order.index(dim) for dim in range(len(order))]
            turned = self.graph.call_function(aten.permute.default, (given, order))
            dense = self.graph.call_function(aten.clone.default, (turned,), _CONTIGUOUS)
            return self.graph.call_function(aten.permute.default, (dense, back))
        shape = row_sizes(node, layout)
        if layout == Layout(0) and _has_gaps(seen) and None not in shape:
            rows = self.graph.call_function(aten.sym_size.int, (given, 0))
            room = (given, [rows, *shape], list(seen.stride()))
            spaced = self.graph.call_function(aten.new_empty_strided.default, room)
            return self.graph.call_function(aten.copy_.default, (spaced, given))
        return given

    def _copy(self, node: fx.Node) -> fx.Node:
        if node in self._line.free:
            value = self._line.values.get(node)
            if effects.is_symbolic(node) and effects.reads_only_shape(node):
                return self._size(node)
            if (
                node.op != "get_attr"
                and self._storage(node) not in self._changing
                and is_constant(node, self._line.free - self._own, value)
            ):
                return self._constant(node, value)
        elif node.op == "placeholder":
            raise CutError(
                f"{operation(node)} has no row for each sample of the batch, so it cannot be "
                "kept with the features. Build it inside the model, or give it as a batch."
            )
        elif effects.reads_only_shape(node):
            return self._size(node)
        copied = self.graph.node_copy(node, self._find)
        add_check(self.graph, copied)
        return copied

    def _find(self, node: fx.Node) -> fx.Node:
        found = self._copies.get(node)
        if found is None:
            raise Unfollowed(
                f"the part above the line reads {operation(node)}, which does not cross it."
            )
        return found

    def _size(self, node: fx.Node) -> fx.Node:
        """A size that the plain graph reads off a tensor which may lie below the line."""
        tensor = node.args[0]
        assert isinstance(tensor, fx.Node)
        if tensor in self._copies:
            return self.graph.node_copy(node, self._find)
        dimension: Any = node.args[1]
        wanted = dict(sizes_of(tensor)).get(dimension)
        for nodes in filter(None, self._line.crossing):
            for dim, size in sizes_of(nodes[0]):
                if size == wanted:
                    given = (self._copies[nodes[0]], dim)
                    made = self.graph.call_function(torch.ops.aten.sym_size.int, given)
                    made.meta = dict(node.meta)
                    return made
        if self._first is not None and (times := times_batch(tensor, wanted)) is not None:
            rows = self.graph.call_function(torch.ops.aten.sym_size.int, (self._first, 0))
            return self.graph.call_function(operator.mul, (rows, times))
        raise Unfollowed(
            f"the part above the line needs the size {wanted}, which no value that crosses it has."
        )

    def _constant(self, node: fx.Node, value: Any) -> fx.Node:
        name = f"constant_{node.name}"
        self._constants[name] = value.detach().clone()
        made = self.graph.get_attr(name)
        made.meta = dict(node.meta)
        return made


# One token of many is copied as it is: room for the others would cost more than it is worth.
_WIDEST_GAP = 16
_CONTIGUOUS: dict[str, Any] = {"memory_format": torch.contiguous_format}


def _needed(starts: Collection[fx.Node], allowed: Collection[fx.Node], line: Line) -> set[fx.Node]:
    """`starts`, all they are computed from and what writes into any of it, within `allowed`."""
    held: set[fx.Node] = set()
    pending = [node for node in starts if node in allowed]
    writers = dict(_writers(allowed, line))
    while pending:
        node = pending.pop()
        if node in held:
            continue
        held.add(node)
        value = line.values.get(node)
        inputs = list(node.all_input_nodes)
        if isinstance(value, Tensor):
            inputs += writers.get(value.untyped_storage().data_ptr(), [])
        pending.extend(n for n in inputs if n in allowed)
    return held


def _writers(allowed: Collection[fx.Node], line: Line) -> Iterator[tuple[int, list[fx.Node]]]:
    found: dict[int, list[fx.Node]] = {}
    for node in allowed:
        for base in effects.written(node):
            value = line.values.get(base)
            if isinstance(value, Tensor):
                found.setdefault(value.untyped_storage().data_ptr(), []).append(node)
    yield from found.items()


def _memory_order(tensor: Tensor) -> list[int] | None:
    """Dimensions from the outermost in memory inwards; None where that is their own order."""
    if tensor.is_contiguous() or tensor.dim() < 2:
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    if not tensor.permute(order).is_contiguous():
        return None  # not dense: a slice of a larger value
    return order if order != list(range(tensor.dim())) else None


def _has_gaps(tensor: Tensor) -> bool:
    """Whether it is a slice, sample by sample, of a value not much larger than itself."""
    strides, sizes = tensor.stride(), tensor.shape
    if tensor.is_contiguous() or tensor.dim() < 2 or 0 in strides or 0 in sizes:
        return False
    inner = sum(stride * (size - 1) for stride, size in zip(strides[1:], sizes[1:], strict=True))
    return inner < strides[0] <= _WIDEST_GAP * sizes[1:].numel()
