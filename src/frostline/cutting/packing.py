"""A graph as plain data, for pickle, and stripped of what only its tracing needed.

What torch.export notes on each node keeps alive the whole world of symbols it was traced in; of
that a node keeps the form of its value alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar, final

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate

_Graphs = TypeVar("_Graphs", fx.Graph, fx.GraphModule)


def slim(graph: _Graphs) -> _Graphs:
    """A graph whose nodes note no more than a tensor without data of their value's form."""
    if isinstance(graph, fx.GraphModule):
        return fx.GraphModule(_read(graph), slim(graph.graph))
    slimmed = copied(graph)
    for node in slimmed.nodes:
        seen = _form(node.meta.get("val"))
        node.meta = {} if seen is None else {"val": seen}
    return slimmed


def copied(graph: fx.Graph) -> fx.Graph:
    """The same graph once more."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _read(module: fx.GraphModule) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        value: Any = attrgetter(str(node.target))(module)
        found[str(node.target)] = slim(value) if isinstance(value, fx.GraphModule) else value
    return found


def _form(value: object) -> Tensor | None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    # A symbol asked for its number would note a guard.
    sizes = [s.node.hint if isinstance(s, torch.SymInt) else s for s in value.shape]
    known = [2 if size is None else int(size) for size in sizes]
    return torch.empty(known, dtype=value.dtype, device="meta")


def forget_symbols(*graphs: fx.Graph) -> None:
    """Let go of the worlds of symbols that these graphs were traced in, which nobody needs then.

    PyTorch (2.15) keeps them twice: in caches on methods, by their last 256 arguments, and by the
    inputs that a world tracks, whose sizes refer back to it where no garbage collector looks.
    """
    for graph in graphs:
        for node in graph.find_nodes(op="placeholder"):
            seen = node.meta.get("val")
            if isinstance(seen, FakeTensor) and seen.fake_mode.shape_env is not None:
                seen.fake_mode.shape_env.tracked_fakes = None
    for method in vars(ShapeEnv).values():
        clear = getattr(method, "cache_clear", None)
        if clear is not None:
            clear()


@final
@dataclass(frozen=True, slots=True)
class _Ref:
    """Stands for the node at that place."""

    place: int


@final
@dataclass(frozen=True, slots=True)
class _Operator:
    """Stands for an operator of PyTorch's, which do not all pickle."""

    name: str
    overload: str | None = None  # none has a higher-order operator

    def find(self) -> Any:
        if self.overload is None:
            return getattr(torch.ops.higher_order, self.name)
        namespace, _, name = self.name.partition("::")
        return getattr(getattr(getattr(torch.ops, namespace), name), self.overload)


@final
@dataclass(frozen=True, slots=True)
class _Packed:
    nodes: tuple[tuple[Any, ...], ...]
    values: Mapping[str, Any]


def pack(graph: fx.Graph, values: Mapping[str, Any]) -> object:
    """The graph with what its `get_attr` nodes read, as data that pickle."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    nodes = tuple(
        (
            node.op,
            node.name,
            _named(node.target),
            *_referring((node.args, dict(node.kwargs)), places),
            node.meta.get("val"),
        )
        for node in graph.nodes
    )
    inner = {
        name: pack(value.graph, _read(value)) if isinstance(value, fx.GraphModule) else value
        for name, value in values.items()
    }
    return _Packed(nodes, inner)


def _referring(arguments: Any, places: Mapping[fx.Node, int]) -> Any:
    def refer(part: Any) -> Any:
        return _Ref(places[part]) if isinstance(part, fx.Node) else part

    return map_aggregate(arguments, refer)


def unpack(packed: Any) -> tuple[fx.Graph, dict[str, Any]]:
    """What `pack` was given."""
    graph, nodes = fx.Graph(), list[fx.Node]()
    for op, name, target, args, kwargs, seen in packed.nodes:
        found = target.find() if isinstance(target, _Operator) else target
        given, named = map_aggregate(
            (args, kwargs), lambda part: nodes[part.place] if isinstance(part, _Ref) else part
        )
        node = graph.create_node(op, found, given, named, name)
        node.meta = {} if seen is None else {"val": seen}
        nodes.append(node)
    values = {}
    for name, value in packed.values.items():
        values[name] = value
        if isinstance(value, _Packed):
            inner, read = unpack(value)
            values[name] = fx.GraphModule(read, inner)
    return graph, values


def _named(target: Any) -> Any:
    if isinstance(target, torch._ops.OpOverload):
        return _Operator(target._schema.name, target._overloadname)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return _Operator(str(target._name))
    return target
