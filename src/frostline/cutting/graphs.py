"""A graph without the model: it holds none of its tensors, and is handed them at each call.

It can be pickled, and keeps nothing of its tracing: what torch.export notes on each node keeps
alive the whole world of symbols it was traced in; of that a node keeps its value's form and its
blocks alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pkgutil import resolve_name
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name, map_aggregate

from frostline.cutting.regions import NOTE, close_regions, regions_of
from frostline.cutting.tracing import module_paths, own_name, target_of

# A graph as data that pickle: operation, name, target, arguments, those by name, the form of the
# value and the blocks of each node.
Rows = list[tuple[Any, ...]]


@final
@dataclass(frozen=True)
class TensorPlace:
    """Where a model keeps a tensor that a graph reads, and of what form it was at the cut.

    Attributes:
        name: the model's own.
        kind: the dict of the module that holds it: parameters, buffers, or its attributes.
        ties: further names of the same tensor; the graph knows it by one of them.
    """

    name: str
    kind: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    ties: tuple[str, ...] = ()

    def holds(self, tensor: object) -> bool:
        """Whether a tensor has the form that the graph was made for."""
        form = self.shape, self.dtype, self.device
        return isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype, tensor.device) == form


@final
class OpenGraph:
    """A graph over tensors of a model, which it never holds.

    It never changes, so a copy of it is itself; it can be pickled. Nodes are made of its rows when
    it is first run: where all features are stored, a prefix never is.

    Attributes:
        rows: a node each.
        values: what `get_attr` nodes read that is no tensor of the model.
        places: whose tensors `run` takes, in their order.
        entered: paths of the modules in whose forwards its operations stand.
    """

    def __init__(
        self,
        rows: Rows,
        values: Mapping[str, Tensor],
        places: Sequence[TensorPlace],
        entered: frozenset[str],
    ) -> None:
        """Of a graph's `rows`, whose `get_attr` nodes read `values` and the places."""
        self.rows = rows
        self.values = dict(values)
        self.places = tuple(places)
        self.entered = entered

    def run(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The graph's outputs, computed with these tensors of a model."""
        outputs: tuple[Tensor, ...] = self._code.forward(*tensors, *values)
        return outputs

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Its operations, in their order."""
        return tuple(self._graph.nodes)

    @property
    def inputs(self) -> list[fx.Node]:
        """Those that stand for the values that `run` takes, in their order."""
        return list(self._graph.find_nodes(op="placeholder"))

    def read(self, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """All tensors that its operations read, in their order, by name: these, and constants."""
        held = self._with(tensors)
        return [(own_name(row[2]), held[row[2]]) for row in self.rows if row[0] == "get_attr"]

    def over(self, tensors: Sequence[Tensor]) -> fx.GraphModule:
        """The graph as a module that holds these tensors, under the targets they have in it."""
        return close_regions(self._graph, self._with(tensors))

    def rewritten(self, rewrite: Callable[[fx.Graph], int]) -> OpenGraph | None:
        """Over the same tensors, after `rewrite` changed a copy; None where that says 0."""
        graph = _graph(_rows(self._graph))
        if not rewrite(graph):
            return None
        return OpenGraph(_rows(graph), self.values, self.places, self.entered)

    def _with(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        given = {target_of(p.name): t for p, t in zip(self.places, tensors, strict=True)}
        return {**self.values, **given}

    @cached_property
    def _graph(self) -> fx.Graph:
        return _graph(self.rows)

    @cached_property
    def _code(self) -> fx.GraphModule:
        graph = fx.Graph()
        # The model's tensors come in as arguments: code that is kept holds none of them.
        targets = [target_of(place.name) for place in self.places]
        given = {t: graph.placeholder(f"tensor_{i}") for i, t in enumerate(targets)}
        reads = self._graph.find_nodes(op="get_attr")
        copies = {node: given[str(node.target)] for node in reads if str(node.target) in given}
        graph.output(graph.graph_copy(self._graph, copies))
        return close_regions(graph, self.values)

    def __deepcopy__(self, memo: dict[int, object]) -> OpenGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenGraph, (self.rows, self.values, self.places, self.entered)


def open_graph(
    graph: fx.Graph, root: nn.Module, model: nn.Module, constants: Mapping[str, Tensor]
) -> OpenGraph:
    """`graph`, whose `get_attr` nodes read from `root` and `constants`, without the model.

    Args:
        root: has what the model has under `model.`, the same objects.
    """
    entered = frozenset(path for node in graph.nodes for path in module_paths(node))
    read = {
        name: constants[name] if name in constants else attrgetter(name)(root)
        for name in _targets(graph)
    }
    places = own_tensors(read, model)
    values = {name: value for name, value in read.items() if name not in places}
    return OpenGraph(_rows(graph), values, list(places.values()), entered)


def own_tensors(read: Mapping[str, Any], model: nn.Module) -> dict[str, TensorPlace]:
    """Of what a graph reads, by target, the tensors that its model owns, be it as attributes."""
    names = defaultdict[int, dict[str, str]](dict)  # of each tensor, with the dict that holds it
    for path, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        for kind in ("_parameters", "_buffers", "__dict__"):
            for leaf, value in own.get(kind, own).items():
                if isinstance(value, Tensor):
                    names[id(value)][f"{path}.{leaf}".lstrip(".")] = kind
    found = {}
    for target, tensor in read.items():
        known, name = names.get(id(tensor), {}), own_name(target)
        if name in known:
            ties = tuple(other for other in known if other != name)
            form = tensor.shape, tensor.dtype, tensor.device
            found[target] = TensorPlace(name, known[name], *form, ties)
    return found


def _targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.find_nodes(op="get_attr", sort=True)]


@final
@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the node at that place."""

    place: int


def _rows(graph: fx.Graph) -> Rows:
    refs = {node: Ref(place) for place, node in enumerate(graph.nodes)}

    def refer(part: Any) -> Any:
        return refs[part] if isinstance(part, fx.Node) else part

    rows = []
    for node in graph.nodes:
        target: Any = node.target
        if isinstance(target, torch._ops.OperatorBase):  # not all of them pickle
            target = _get_qualified_name(target)
        given: Any = map_aggregate((node.args, dict(node.kwargs)), refer)
        noted = _form(node.meta.get("val")), regions_of(node)
        rows.append((node.op, node.name, target, *given, *noted))
    return rows


def _graph(rows: Rows) -> fx.Graph:
    """The graph; of what was noted on a node, its blocks and its value's form, without data."""
    graph, nodes = fx.Graph(), list[fx.Node]()

    def find(part: Any) -> Any:
        return nodes[part.place] if isinstance(part, Ref) else part

    for op, name, target, args, kwargs, form, regions in rows:
        is_operator = op == "call_function" and isinstance(target, str)
        found = resolve_name(target) if is_operator else target
        node = graph.create_node(op, found, *map_aggregate((args, kwargs), find), name)
        node.meta = {NOTE: regions} if form is None else {NOTE: regions, "val": form}
        nodes.append(node)
    return graph


def _form(value: object) -> Tensor | None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    # A symbol asked for its number would note a guard.
    sizes = [s.node.hint if isinstance(s, torch.SymInt) else s for s in value.shape]
    known = [2 if size is None else int(size) for size in sizes]
    return torch.empty(known, dtype=value.dtype, device="meta")
