"""Blocks of a forward under autocast or without gradients: opened for the verdicts, closed again.

torch.export keeps such a block as one operation that runs a graph of its own. The frost line may
run through the middle of it, so its operations are put into the graph itself, each with a note of
the blocks that it stands in. Where a half's graph becomes code, the blocks are closed again, each
around what is left of it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, final

import torch
from torch import fx

from frostline._sources import forgotten

_HIGHER = torch.ops.higher_order
# The operations that run a block, with how many settings stand before its graph.
_SETTINGS = {_HIGHER.wrap_with_autocast: 4, _HIGHER.wrap_with_set_grad_enabled: 1}
NOTE = "regions"  # where a node's meta keeps its blocks


@final
@dataclass(frozen=True)
class Region:
    """One block of the forward.

    Attributes:
        kind: the name of the operation that runs it.
        number: tells two blocks of the same settings apart.
    """

    kind: str
    settings: tuple[Any, ...]
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.settings}"


def regions_of(node: fx.Node) -> tuple[Region, ...]:
    """The blocks that the node stands in, outermost first."""
    found: tuple[Region, ...] = node.meta.get(NOTE, ())
    return found


@contextmanager
def entered(node: fx.Node) -> Iterator[None]:
    """Inside, the node runs as it does in its blocks."""
    with ExitStack() as stack:
        for region in regions_of(node):
            if region.kind == "wrap_with_set_grad_enabled":
                stack.enter_context(torch.set_grad_enabled(*region.settings))
            else:
                device, dtype, enabled, cached = region.settings
                stack.enter_context(torch.autocast(device, dtype, enabled, cached))
        yield


def open_regions(module: fx.GraphModule) -> None:
    """Put the operations of every block into the graph of `module`, which must be compiled anew."""
    number = 0
    while blocks := [node for node in module.graph.nodes if node.target in _SETTINGS]:
        for node in blocks:
            number += 1
            _open(module, node, number)


def _open(module: fx.GraphModule, node: fx.Node, number: int) -> None:
    wrapper: Any = node.target
    count = _SETTINGS[wrapper]
    reference, *handed = node.args[count:]
    assert isinstance(reference, fx.Node)
    inner: Any = attrgetter(str(reference.target))(module)
    around = (*regions_of(node), Region(str(wrapper), _settings(node), number))
    copies = dict(zip(inner.graph.find_nodes(op="placeholder"), handed, strict=True))
    with module.graph.inserting_before(node):
        results: Any = module.graph.graph_copy(inner.graph, copies)
    for own, made in copies.items():
        if own.op != "placeholder":
            made.meta[NOTE] = around
            if own.op == "get_attr":
                made.target = f"{reference.target}.{own.target}"
    for user in list(node.users):  # each takes one of the results
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not reference.users:
        module.graph.erase_node(reference)


def _settings(node: fx.Node) -> tuple[Any, ...]:
    if node.target is not _HIGHER.wrap_with_autocast:
        return node.args[:1]
    # Export (2.15) traces with autocast's cache of cast weights off and writes that down. With it,
    # as in the plain model, the gradients of a weight that is used twice are summed as there.
    return (*node.args[:3], True)


def close_regions(graph: fx.Graph, values: Mapping[str, Any]) -> fx.GraphModule:
    """A copy of `graph` over `values`, each run of operations of one block as one again."""
    closed, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            copies[node] = closed.node_copy(node)
    rest = [node for node in graph.nodes if node.op == "call_function"]
    blocks = _close(rest, closed, copies, depth=0)
    closed.output(fx.map_arg(graph.output_node().args[0], copies.__getitem__))
    return forgotten(fx.GraphModule({**values, **blocks}, closed))


def _close(
    nodes: Sequence[fx.Node], graph: fx.Graph, copies: dict[fx.Node, fx.Node], *, depth: int
) -> dict[str, fx.GraphModule]:
    """Copy the nodes into `graph`; gives the blocks that it then refers to, by name."""
    parts: dict[str, fx.GraphModule] = {}
    for region, group in groupby(nodes, lambda node: (*regions_of(node)[depth:], None)[0]):
        run = list(group)
        if region is None:
            for node in run:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            continue
        name = f"block_{len(parts)}"
        outer = list(dict.fromkeys(a for n in run for a in n.all_input_nodes if a not in run))
        results = [node for node in run if any(user not in run for user in node.users)]
        inner = fx.Graph()
        inside = {node: inner.placeholder(node.name) for node in outer}
        blocks = _close(run, inner, inside, depth=depth + 1)
        inner.output(tuple(inside[node] for node in results))
        parts[name] = forgotten(fx.GraphModule(blocks, inner))
        reference = graph.get_attr(name)
        handed = (*region.settings, reference, *(copies[node] for node in outer))
        block = graph.call_function(getattr(_HIGHER, region.kind), handed)
        for place, node in enumerate(results):
            copies[node] = graph.call_function(operator.getitem, (block, place))
            copies[node].meta = dict(node.meta)
    return parts
