"""A graph without the model: it holds none of its tensors, and is handed them at each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from frostline.cutting.packing import copied, pack, slim, unpack


@final
@dataclass(frozen=True)
class Place:
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

    def __init__(self, graph: fx.Graph, values: Mapping[str, Any], places: Sequence[Place]) -> None:
        """Take over `graph`.

        Args:
            values: what its `get_attr` nodes read besides the places: constants, inner graphs.
            places: by the target of the `get_attr` nodes that read them.
        """
        self.entered = _entered(graph, values)
        self._graph = slim(graph)
        self._values = {
            n: slim(v) if isinstance(v, fx.GraphModule) else v for n, v in values.items()
        }
        self.places = tuple(places)

    def run(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The graph's outputs, computed with these tensors of a model."""
        outputs: tuple[Tensor, ...] = self._code.forward(*tensors, *values)
        return outputs

    def read(self, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """All tensors that its operations read, in their order, by name: these, and constants."""
        given = dict(zip((target_of(place.name) for place in self.places), tensors, strict=True))
        held = {**self._values, **given}
        targets = [str(node.target) for node in self._graph.find_nodes(op="get_attr", sort=True)]
        return [
            (target.removeprefix(target_of("")), value)
            for target in targets
            if isinstance(value := held[target], Tensor)
        ]

    def over(self, tensors: Sequence[Tensor]) -> fx.GraphModule:
        """The graph as a module that holds these tensors, under the targets they have in it."""
        given = {target_of(p.name): t for p, t in zip(self.places, tensors, strict=True)}
        return fx.GraphModule({**self._values, **given}, copied(self._graph))

    @cached_property
    def _code(self) -> fx.GraphModule:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        targets = [target_of(place.name) for place in self.places]
        given = {t: graph.placeholder(f"tensor_{i}") for i, t in enumerate(targets)}
        for node in self._graph.nodes:
            read = given.get(str(node.target)) if node.op == "get_attr" else None
            copies[node] = read or graph.node_copy(node, lambda n: copies[n])
        return fx.GraphModule(dict(self._values), graph)

    def __deepcopy__(self, memo: dict[int, object]) -> OpenGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (pack(self._graph, self._values), self.places, self.entered)


def _unpacked(packed: Any, places: tuple[Place, ...], entered: frozenset[str]) -> OpenGraph:
    graph, values = unpack(packed)
    made = OpenGraph(graph, values, places)
    made.entered = entered
    return made


def target_of(name: str) -> str:
    """What a graph calls the tensor that the model knows by this name."""
    return f"model.{name}"


def open_graph(
    graph: fx.Graph, root: nn.Module, model: nn.Module, constants: Mapping[str, Any]
) -> OpenGraph:
    """`graph`, whose `get_attr` nodes read from `root` and `constants`, without the model.

    Args:
        root: has what the model has under `model.`, the same objects.
    """
    values, places = dict(constants), list[Place]()
    names = _names(model)
    for target in dict.fromkeys(str(n.target) for n in graph.find_nodes(op="get_attr", sort=True)):
        if target in values:
            continue
        value: Any = attrgetter(target)(root)
        place = _place(target, value, names)
        if place is None:
            values[target] = value
        else:
            places.append(place)
    return OpenGraph(graph, values, places)


def own_tensors(root: nn.Module, graph: fx.Graph, model: nn.Module) -> set[fx.Node]:
    """The nodes that read tensors which the model owns, be it as plain attributes."""
    names = _names(model)
    nodes = graph.find_nodes(op="get_attr")
    return {n for n in nodes if _place(str(n.target), attrgetter(str(n.target))(root), names)}


def _names(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """For each tensor of the model its names, each with the dict that holds it."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        for kind, held in (("_parameters", own["_parameters"]), ("_buffers", own["_buffers"])):
            for leaf, value in held.items():
                found.setdefault(id(value), []).append((f"{path}.{leaf}".lstrip("."), kind))
        for leaf, value in own.items():
            if isinstance(value, Tensor):
                found.setdefault(id(value), []).append((f"{path}.{leaf}".lstrip("."), "__dict__"))
    return found


def _place(target: str, value: object, names: Mapping[int, list[tuple[str, str]]]) -> Place | None:
    known = dict(names.get(id(value), ())) if isinstance(value, Tensor) else {}
    name = target.removeprefix(target_of(""))
    if name not in known or not isinstance(value, Tensor):
        return None
    ties = tuple(other for other in known if other != name)
    return Place(name, known[name], value.shape, value.dtype, value.device, ties)


def _entered(graph: fx.Graph, values: Mapping[str, Any]) -> frozenset[str]:
    found: set[str] = set()
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        found.update(
            str(path).removeprefix("model").removeprefix(".") for path, _ in stack.values()
        )
    for value in values.values():
        if isinstance(value, fx.GraphModule):
            found |= _entered(value.graph, dict(value.named_children()))
    return frozenset(found)
