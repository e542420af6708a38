"""A graph without the model: it holds none of its tensors, and is handed them at each call.

It can be pickled, and keeps nothing of its tracing: what torch.export notes on each node keeps
alive the whole world of symbols it was traced in; of that a node keeps its value's form alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pkgutil import resolve_name
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name, map_aggregate

from frostline.cutting.regions import close_regions
from frostline.cutting.tracing import module_paths, own_name, target_of


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

    def owned(self, module: nn.Module) -> dict[str, Any]:
        """The dict of that module in which the tensor is to be looked up."""
        own = vars(module)
        found: dict[str, Any] = own if self.kind == "__dict__" else own[self.kind]
        return found

    def holds(self, tensor: object) -> bool:
        """Whether a tensor has the form that the graph was made for."""
        return (
            isinstance(tensor, Tensor)
            and tensor.shape == self.shape
            and tensor.dtype == self.dtype
            and tensor.device == self.device
        )


@final
class OpenGraph:
    """A graph over tensors of a model, which it never holds.

    It never changes, so a copy of it is itself; it can be pickled.

    Attributes:
        places: whose tensors `run` takes, in their order.
        entered: paths of the modules in whose forwards its operations stand.
    """

    def __init__(
        self,
        graph: fx.Graph,
        values: Mapping[str, Any],
        places: Sequence[TensorPlace],
        entered: frozenset[str],
    ) -> None:
        """Take over `graph`, whose `get_attr` nodes read `values` and the places."""
        self.places = tuple(places)
        self.entered = entered
        self._graph = _graph(_rows(graph))
        self._values = _slim(values)

    @property
    def parameters(self) -> tuple[TensorPlace, ...]:
        """Those of the places that are parameters."""
        return tuple(place for place in self.places if place.kind == "_parameters")

    def run(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The graph's outputs, computed with these tensors of a model."""
        outputs: tuple[Tensor, ...] = self._code.forward(*tensors, *values)
        return outputs

    def read(self, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """All tensors that its operations read, in their order, by name: these, and constants."""
        held = self._with(tensors)
        read = [name for name in _targets(self._graph) if isinstance(held[name], Tensor)]
        return [(own_name(name), held[name]) for name in read]

    def over(self, tensors: Sequence[Tensor]) -> fx.GraphModule:
        """The graph as a module that holds these tensors, under the targets they have in it."""
        return fx.GraphModule(self._with(tensors), deepcopy(self._graph))

    def _with(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        given = {target_of(p.name): t for p, t in zip(self.places, tensors, strict=True)}
        return {**self._values, **given}

    @cached_property
    def _code(self) -> fx.GraphModule:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        targets = [target_of(place.name) for place in self.places]
        given = {t: graph.placeholder(f"tensor_{i}") for i, t in enumerate(targets)}
        for node in self._graph.nodes:
            read = given.get(str(node.target)) if node.op == "get_attr" else None
            copies[node] = read or graph.node_copy(node, copies.__getitem__)
        return fx.GraphModule(dict(self._values), graph)

    def __deepcopy__(self, memo: dict[int, object]) -> OpenGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (_rows(self._graph), self._values, self.places, self.entered)


def _unpacked(
    rows: _Rows, values: Mapping[str, Any], places: tuple[TensorPlace, ...], entered: frozenset[str]
) -> OpenGraph:
    return OpenGraph(_graph(rows), values, places, entered)


def open_graph(
    graph: fx.Graph, root: nn.Module, model: nn.Module, constants: Mapping[str, Any]
) -> OpenGraph:
    """`graph`, whose `get_attr` nodes read from `root` and `constants`, without the model.

    Args:
        root: has what the model has under `model.`, the same objects.
    """
    graph, blocks = close_regions(graph)
    constants = {**constants, **blocks}
    places = own_tensors(graph, root, model, besides=constants)
    rest = [target for target in _targets(graph) if target not in {**places, **constants}]
    values = {**constants, **{target: attrgetter(target)(root) for target in rest}}
    return OpenGraph(graph, values, list(places.values()), _entered(graph, values))


def own_tensors(
    graph: fx.Graph, root: nn.Module, model: nn.Module, *, besides: Collection[str] = ()
) -> dict[str, TensorPlace]:
    """By target, the tensors that a graph reads and its model owns, be it as plain attributes."""
    names = defaultdict[int, dict[str, str]](dict)  # of each tensor, with the dict that holds it
    for path, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        for kind in ("_parameters", "_buffers", "__dict__"):
            for leaf, value in own.get(kind, own).items():
                if isinstance(value, Tensor):
                    names[id(value)][f"{path}.{leaf}".lstrip(".")] = kind
    found = {}
    for target in _targets(graph):
        read: Any = None if target in besides else attrgetter(target)(root)
        known, name = names.get(id(read), {}), own_name(target)
        if name in known:
            ties = tuple(other for other in known if other != name)
            form = read.shape, read.dtype, read.device
            found[target] = TensorPlace(name, known[name], *form, ties)
    return found


def _targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.find_nodes(op="get_attr", sort=True)]


def _entered(graph: fx.Graph, values: Mapping[str, Any]) -> frozenset[str]:
    inner = [v for v in values.values() if isinstance(v, fx.GraphModule)]
    return frozenset(path for node in graph.nodes for path in module_paths(node)).union(
        *(_entered(block.graph, dict(block.named_children())) for block in inner)
    )


def _slim(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, the graphs among them without what their tracing noted."""
    return {
        name: _Block(_slim(_read(v)), _graph(_rows(v.graph)))
        if isinstance(v, fx.GraphModule)
        else v
        for name, v in values.items()
    }


def _read(module: fx.GraphModule) -> dict[str, Any]:
    return {name: attrgetter(name)(module) for name in _targets(module.graph)}


class _Block(fx.GraphModule):
    """A graph that an operation runs. torch would pickle its code, and trace that anew."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _block, (_rows(self.graph), _read(self))


def _block(rows: _Rows, values: dict[str, Any]) -> _Block:
    return _Block(values, _graph(rows))


_Rows = list[tuple[Any, ...]]  # a graph as data that pickle: for each node a row


@final
@dataclass(frozen=True, slots=True)
class _Ref:
    """Stands for the node at that place."""

    place: int


def _rows(graph: fx.Graph) -> _Rows:
    refs = {node: _Ref(place) for place, node in enumerate(graph.nodes)}

    def refer(part: Any) -> Any:
        return refs[part] if isinstance(part, fx.Node) else part

    rows = []
    for node in graph.nodes:
        target: Any = node.target
        if isinstance(target, torch._ops.OperatorBase):  # not all of them pickle
            target = _get_qualified_name(target)
        given: Any = map_aggregate((node.args, dict(node.kwargs)), refer)
        rows.append((node.op, node.name, target, *given, _form(node.meta.get("val"))))
    return rows


def _graph(rows: _Rows) -> fx.Graph:
    """The graph, each node with a tensor without data of its value's form, and no more."""
    graph, nodes = fx.Graph(), list[fx.Node]()

    def find(part: Any) -> Any:
        return nodes[part.place] if isinstance(part, _Ref) else part

    for op, name, target, args, kwargs, form in rows:
        is_operator = op == "call_function" and isinstance(target, str)
        found = resolve_name(target) if is_operator else target
        node = graph.create_node(op, found, *map_aggregate((args, kwargs), find), name)
        node.meta = {} if form is None else {"val": form}
        nodes.append(node)
    return graph


def _form(value: object) -> Tensor | None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    # A symbol asked for its number would note a guard.
    sizes = [s.node.hint if isinstance(s, torch.SymInt) else s for s in value.shape]
    known = [2 if size is None else int(size) for size in sizes]
    return torch.empty(known, dtype=value.dtype, device="meta")
