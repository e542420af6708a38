"""The graph in two: a prefix that gives the crossing values, and a suffix that takes them."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from frostline.cutting import effects
from frostline.cutting.effects import upwards
from frostline.cutting.graphs import OpenGraph, open_graph, own_tensors
from frostline.cutting.layouts import (
    CONTIGUOUS,
    ROWS_FIRST,
    RowLayout,
    row_sizes,
    sizes_of,
    times_batch,
)
from frostline.cutting.tracing import Unfollowed, operation
from frostline.cutting.trial import Observed
from frostline.errors import CutError

_ATEN = torch.ops.aten
# One token of many is copied as it is: room for the others would cost more than it is worth.
_WIDEST_GAP = 16


@final
@dataclass(frozen=True)
class GraphLine:
    """Where the line runs in one graph.

    Attributes:
        below: frozen nodes that samples reach and that only the prefix computes.
        free: frozen nodes that depend on no sample; both halves may compute them.
        both: frozen nodes that samples reach and that both halves may compute too.
        crossing: for each frontier value, the nodes that hold it; the first stands for all. None
            hold it in a graph that does without, as an evaluation without auxiliary outputs.
        layouts: for each frontier value, how the samples lie in it.
        trial: of the graph.
    """

    below: Collection[fx.Node]
    free: frozenset[fx.Node]
    crossing: tuple[tuple[fx.Node, ...], ...]
    layouts: tuple[RowLayout, ...]
    trial: Observed
    both: frozenset[fx.Node] = frozenset()

    def needed(self, starts: Collection[fx.Node], allowed: Collection[fx.Node]) -> set[fx.Node]:
        """`starts`, all they are computed from and what writes into any of it, within `allowed`."""
        # Of a write in place nothing need take the result: who reads the memory needs it.
        writers = defaultdict[int | None, list[fx.Node]](list)
        for node in allowed:
            for storage in self.trial.written(node):
                writers[storage].append(node)
        held, pending = set[fx.Node](), list(starts)
        while pending:
            node = pending.pop()
            if node in allowed and node not in held:
                held.add(node)
                pending += [*node.all_input_nodes, *writers.get(self.trial.storage.get(node), ())]
        return held


def build_prefix(line: GraphLine, model: nn.Module) -> tuple[OpenGraph, frozenset[fx.Node]]:
    """Flat inputs -> the crossing values; also the nodes of the whole graph that it holds."""
    traced = line.trial.traced
    wanted = [nodes[0] for nodes in line.crossing]
    inputs = list(traced.module.graph.find_nodes(op="placeholder"))
    held = line.needed([*wanted, *inputs], line.free.union(line.below, line.both)).union(inputs)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in traced.nodes:
        if node in held:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    given = copies[inputs[0]]
    graph.output(
        tuple(
            layout.rows(copies[node], given, graph.call_function)
            for node, layout in zip(wanted, line.layouts, strict=True)
        )
    )
    return open_graph(graph, traced.module, model, {}), frozenset(held)


def build_suffix(line: GraphLine, model: nn.Module) -> OpenGraph:
    """The crossing values -> flat outputs.

    It never writes into the values it is given.

    Raises:
        CutError: it needs a size that no crossing value tells, or a value that does not cross.
    """
    return _SuffixBuilder(line, model).build()


class _SuffixBuilder:
    def __init__(self, line: GraphLine, model: nn.Module) -> None:
        self._graph = fx.Graph()
        self._call = self._graph.call_function
        self._traced = traced = line.trial.traced
        self._model = model
        self._line = line
        self._constants: dict[str, Any] = {}
        self._copies: dict[fx.Node, fx.Node] = {}
        self._first: fx.Node | None = None
        self._trial = line.trial
        above = [node for node in traced.nodes if node not in line.below]
        self._written_above = {s for node in above for s in line.trial.written(node)}
        # Memory that any operation writes into has no one value to keep as a constant.
        self._changing = {s for node in traced.nodes for s in line.trial.written(node)}
        # What is computed from a tensor of the model is computed anew: it may be another one.
        reads = traced.module.graph.find_nodes(op="get_attr")
        owned = own_tensors({str(node.target): traced.tensor(node) for node in reads}, model)
        self._fixed = line.free - {node for node in reads if str(node.target) in owned}
        own = {n for n in above if n not in line.free and (n.op != "placeholder" or n.users)}
        starts = [argument for node in own for argument in node.all_input_nodes]
        # A size that a crossing value has is read there, not computed from the inputs' again.
        self._known_sizes = {node for node in line.free if self._crossing_size(node) is not None}
        self._held = line.needed(starts, line.free - self._known_sizes) | own

    def build(self) -> OpenGraph:
        for number, nodes in enumerate(self._line.crossing):
            given = self._graph.placeholder(f"feature_{number}")
            self._first = self._first or given
            if nodes:
                self._take(given, nodes, self._line.layouts[number])
        for node in self._traced.nodes:
            known = node in self._copies  # a feature, or of equal content
            if node in self._held and not known and node.op != "output":
                self._copies[node] = self._copy(node)
        output = self._traced.module.graph.output_node()
        self._graph.output(fx.map_arg(output.args[0], self._find))
        return open_graph(self._graph, self._traced.module, self._model, self._constants)

    def _take(self, given: fx.Node, nodes: tuple[fx.Node, ...], layout: RowLayout) -> None:
        """Let the feature stand for the nodes that hold it."""
        laid = self._as_laid_out(given, nodes[0], layout)
        if any(self._trial.storage[node] in self._written_above for node in nodes):
            # Whoever holds the feature keeps it as it is.
            laid = self._call(_ATEN.clone.default, (laid,))
        self._copies |= dict.fromkeys(nodes, laid)

    def _as_laid_out(self, given: fx.Node, node: fx.Node, layout: RowLayout) -> fx.Node:
        """The node's value as it lies in the plain model; kernels may go by the strides."""
        seen = self._trial.values[node]
        given = layout.restored(given, self._call)
        if (order := _memory_order(seen)) is not None:
            back = [order.index(dim) for dim in range(len(order))]
            turned = self._call(_ATEN.permute.default, (given, order))
            dense = self._call(_ATEN.clone.default, (turned,), CONTIGUOUS)
            return self._call(_ATEN.permute.default, (dense, back))
        shape = row_sizes(node, layout)
        if layout == ROWS_FIRST and _has_gaps(seen) and None not in shape:
            rows = self._call(_ATEN.sym_size.int, (given, 0))
            room = (given, [rows, *shape], list(seen.stride()))
            spaced = self._call(_ATEN.new_empty_strided.default, room)
            return self._call(_ATEN.copy_.default, (spaced, given))
        return given

    def _copy(self, node: fx.Node) -> fx.Node:
        is_free = node in self._line.free
        if node.op == "placeholder" and not is_free:
            raise CutError(
                f"{operation(node)} has no row for each sample of the batch, so it cannot be "
                "kept with the features. Build it inside the model, or give it as a batch."
            )
        if effects.reads_only_shape(node) and (effects.is_symbolic(node) or not is_free):
            return self._size(node)
        if is_free and self._is_constant(node):
            return self._constant(node)
        copied = self._graph.node_copy(node, self._find)
        effects.add_check(self._graph, copied)
        return copied

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether a tensor is the same for any batch: all it is computed from is fixed, no size."""
        return (
            node.op != "get_attr"
            and node in self._trial.storage
            and self._trial.storage[node] not in self._changing
            and all(n in self._fixed and not effects.is_symbolic(n) for n in upwards([node]))
        )

    def _find(self, node: fx.Node) -> fx.Node:
        found = self._copies.get(node)
        if found is None and node in self._known_sizes:
            number, dim = self._crossing_size(node) or (0, 0)
            held = self._copies[self._line.crossing[number][0]]
            found = self._copies[node] = self._call(_ATEN.sym_size.int, (held, dim))
            found.meta = dict(node.meta)
        if found is None:
            raise Unfollowed(
                f"the part above the line reads {operation(node)}, which does not cross it."
            )
        return found

    def _crossing_size(self, node: fx.Node) -> tuple[int, int] | None:
        """The number of a frontier value, and its dimension, that has the size that a node is."""
        size = node.meta.get("val")
        if not isinstance(size, torch.SymInt) or size.node.expr.is_number:
            return None
        for number, nodes in enumerate(self._line.crossing):
            for dim, found in sizes_of(nodes[0]) if nodes else ():
                if found == size.node.expr:
                    return number, dim
        return None

    def _size(self, node: fx.Node) -> fx.Node:
        """A size that the plain graph reads off a tensor which may lie below the line."""
        tensor = node.args[0]
        assert isinstance(tensor, fx.Node)
        if tensor in self._copies:
            return self._graph.node_copy(node, self._find)
        dimension: Any = node.args[1]
        wanted = dict(sizes_of(tensor)).get(dimension)
        for nodes in filter(None, self._line.crossing):
            for dim, size in sizes_of(nodes[0]):
                if size == wanted:
                    made = self._call(_ATEN.sym_size.int, (self._copies[nodes[0]], dim))
                    made.meta = dict(node.meta)
                    return made
        times = times_batch(tensor, wanted)
        if self._first is not None and times is not None and times.is_number:
            rows = self._call(_ATEN.sym_size.int, (self._first, 0))
            return self._call(operator.mul, (rows, int(times)))
        raise Unfollowed(
            f"the part above the line needs the size {wanted}, which no value that crosses it has."
        )

    def _constant(self, node: fx.Node) -> fx.Node:
        name = f"constant_{node.name}"
        self._constants[name] = self._trial.values[node].detach().clone()
        made = self._graph.get_attr(name)
        made.meta = dict(node.meta)
        return made


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
