"""A draft: a copy of a prefix's graph that may be rewritten, with the values it reads.

The graph is the draft's own. The values are the model's own tensors until a rewriting puts copies
in their place; none may write into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from frostline._sources import forgotten
from frostline.schemas import aliased, calls, schema_of


@final
@dataclass(frozen=True, slots=True)
class Draft:
    """A graph in the making.

    Attributes:
        graph: placeholders are the flat inputs; the output is a tuple.
        values: what the graph's `get_attr` and `call_module` nodes read, by their target.
    """

    graph: Graph
    values: dict[str, Any]

    def constant(self, node: object) -> Tensor | None:
        """The tensor a node reads, if it is one that does."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return None
        value = self.values[str(node.target)]
        return value if isinstance(value, Tensor) else None

    def add_constant(self, value: Tensor, name: str, *, before: Node) -> Node:
        """A new `get_attr` node for `value`, under a name of its own."""
        while name in self.values:
            name += "_"
        self.values[name] = value
        with self.graph.inserting_before(before):
            return self.graph.create_node("get_attr", name)

    def build(self) -> GraphModule:
        """A module that computes the draft."""
        return forgotten(GraphModule(self.values, self.graph))


def draft_of(prefix: GraphModule) -> Draft:
    """Copy the graph of `prefix`, less the values nobody reads, and collect the values it reads."""
    graph = Graph()
    result = graph.graph_copy(prefix.graph, {})
    graph.output(result)
    values = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op in ("get_attr", "call_module"):
            values[str(node.target)] = reduce(getattr, str(node.target).split("."), prefix)
    return Draft(graph, values)


def sample_of(node: object) -> Tensor | None:
    """The tensor without data that the export recorded for a node, if any."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def use_instead(node: Node, derived: Node) -> None:
    """Let all users of `node` read `derived`, which is computed from it, instead."""
    node.replace_all_uses_with(derived, delete_user_cb=lambda user: user is not derived)


# They return their input itself in eval mode, or views of it, and their schemas do not say so.
_UNDECLARED_ALIASES = (
    *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "meshgrid"),
    *("pad", "pin_memory", "to_dense", "type_as"),
)


def protect(draft: Draft) -> None:
    """Clone each input and constant at the start of every run if an operation may write into it.

    Values do not change, and what nobody writes into is not cloned.
    """
    written = _written_sources(draft)
    start = next(n for n in draft.graph.nodes if n.op not in ("placeholder", "get_attr"))
    for source in written:
        first = source if source.op == "get_attr" else start.prev
        with draft.graph.inserting_after(first):
            clone = draft.graph.call_function(torch.ops.aten.clone.default, (source,))
        clone.meta = dict(source.meta)
        use_instead(source, clone)


def _written_sources(draft: Draft) -> list[Node]:
    """Inputs and constants whose memory some in-place operation may reach, in graph order."""
    sources: dict[Node, frozenset[Node]] = {}
    written: set[Node] = set()
    for node in draft.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            sources[node] = frozenset([node])
            continue
        shared = [sources[before] for before in _aliased(node)]
        sources[node] = frozenset().union(*shared)
        for target in aliased(node, written=True):
            written |= sources[target]
    return [node for node in draft.graph.nodes if node in written]


def _aliased(node: Node) -> list[Node]:
    """Inputs of a node whose memory its result may share."""
    # What has no schema picks from a tuple, runs a graph or a module: it may be any.
    if schema_of(node) is None or calls(node, *_UNDECLARED_ALIASES):
        return node.all_input_nodes
    return aliased(node)
