"""Where to cut: the set of frozen nodes to compute once, by minimum cut.

An epoch pays for each sample to read the bytes that cross the line, and to compute again the
frozen operations above it. Both are put in one unit, bytes, by prices that depend on shapes
alone, so that the line runs at the same place in every run and on every machine.

Source: L. R. Ford and D. R. Fulkerson, Maximal flow through a network (1956); the flow is found
by the algorithm of Y. Dinitz (1970).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, fx

from frostline.cutting import effects
from frostline.cutting.layouts import RowLayout
from frostline.cutting.sweep import Swept
from frostline.cutting.trial import Observed

# Floating-point operations in the time that reading one byte of a stored feature takes: about
# 1e11 a second against 1e9 bytes a second from the page cache.
_FLOPS_PER_BYTE = 100
# A cheap operation passes its output through memory once, at ten times that speed.
_PASS = 0.1
_DEAR = 1 << 20
_INFINITE = 1 << 60


@final
@dataclass(frozen=True)
class Choice:
    """The nodes below the line, and those whose values cross it.

    Attributes:
        below: frozen nodes that are computed once per sample.
        crossing: those of them that the rest reads, in the graph's order.
    """

    below: frozenset[fx.Node]
    crossing: tuple[fx.Node, ...]


def choose(
    nodes: Iterable[fx.Node], swept: Swept, trial: Observed, layouts: Mapping[fx.Node, RowLayout]
) -> Choice:
    """The cheapest place for the line; `below` holds inputs only where nothing can be kept.

    Args:
        layouts: of the nodes whose values can be kept, since they have a row for each sample.
    """
    carriers = [n for n in nodes if swept.is_frozen(n) and n not in swept.free]
    below = _below(carriers, swept, trial, layouts, price=1)
    if all(node.op == "placeholder" for node in below):
        # Computing is cheap beside reading, as in small networks: the last line there is. It
        # still saves reading and preparing the sample itself.
        below = _below(carriers, swept, trial, layouts, price=_DEAR)
    crosses = (
        node
        for node in carriers
        if node in below
        and any(user not in below and not effects.reads_only_shape(user) for user in node.users)
    )
    return Choice(below, tuple(crosses))


def row_bytes(node: fx.Node, trial: Observed) -> int:
    """Bytes of one sample's value of a node."""
    value = trial.values[node]
    assert isinstance(value, Tensor)
    return value.numel() * value.element_size() // trial.samples[0].shape[0]


def forward_share(held: Collection[fx.Node], trial: Observed) -> float:
    """Share of the forward's cost that the prefix computes, by counted operations.

    Args:
        held: the prefix's nodes, with those that no sample reaches, as tables of positions.
    """
    costs = {node: _cost(node, trial) for node in trial.values if node.op == "call_function"}
    total = sum(costs.values())
    return sum(costs[n] for n in costs if n in held) / total if total else 0.0


def _cost(node: fx.Node, trial: Observed) -> int:
    """What computing the node again costs for one sample, in bytes read."""
    value = trial.values.get(node)
    outputs = [value] if isinstance(value, Tensor) else value
    if node.op != "call_function" or not isinstance(outputs, tuple | list):
        return 0
    rows = trial.samples[0].shape[0]
    written = sum(out.numel() * out.element_size() for out in outputs if isinstance(out, Tensor))
    passed = written / rows * _PASS
    return 1 + int(trial.flops.get(node, 0.0) / _FLOPS_PER_BYTE + passed)


def _is_view(node: fx.Node, trial: Observed) -> bool:
    shared = [trial.storage.get(argument) for argument in node.all_input_nodes]
    own = trial.storage.get(node)
    return own is not None and own in shared and not any(effects.written(node))


def _below(
    carriers: list[fx.Node],
    swept: Swept,
    trial: Observed,
    layouts: Mapping[fx.Node, RowLayout],
    *,
    price: int,
) -> frozenset[fx.Node]:
    # Of the two halves of a node one stands for computing it, the other for reading what it gave.
    place = {node: index for index, node in enumerate(carriers)}
    source, sink = 2 * len(carriers), 2 * len(carriers) + 1
    flow = _Flow(2 * len(carriers) + 2)
    for node, index in place.items():
        inside, outside = 2 * index, 2 * index + 1
        is_input = node.op == "placeholder"
        # Another view of what is kept is worth no room, however dear computing is.
        own = 1 if _is_view(node, trial) else price
        flow.edge(source, inside, _INFINITE if is_input else own * _cost(node, trial))
        flow.edge(inside, outside, row_bytes(node, trial) if node in layouts else _INFINITE)
        for user in node.users:
            if effects.reads_only_shape(user):
                continue
            if user in place:
                flow.edge(outside, 2 * place[user], _INFINITE)
                # What is below reads nothing from above.
                flow.edge(2 * place[user], inside, _INFINITE)
            elif not swept.is_frozen(user):
                flow.edge(outside, sink, _INFINITE)
    for group in swept.together:
        first, *rest = [place[node] for node in group if node in place] or [0]
        for other in rest:
            flow.edge(2 * first, 2 * other, _INFINITE)
            flow.edge(2 * other, 2 * first, _INFINITE)
    reached = flow.cut(source, sink)
    return frozenset(node for node, index in place.items() if reached[2 * index])


@final
class _Flow:
    """A network of directed edges with capacities."""

    def __init__(self, nodes: int) -> None:
        self._out: list[list[int]] = [[] for _ in range(nodes)]
        self._to: list[int] = []
        self._left: list[int] = []

    def edge(self, start: int, end: int, capacity: int) -> None:
        for origin, target, room in ((start, end, capacity), (end, start, 0)):
            self._out[origin].append(len(self._to))
            self._to.append(target)
            self._left.append(room)

    def cut(self, source: int, sink: int) -> list[bool]:
        """Which nodes the source still reaches when no more can flow to the sink."""
        while (levels := self._levels(source))[sink] >= 0:
            used = [0] * len(self._out)
            while self._push(source, sink, levels, used):
                pass
        return [level >= 0 for level in levels]

    def _levels(self, source: int) -> list[int]:
        levels = [-1] * len(self._out)
        levels[source] = 0
        pending = deque([source])
        while pending:
            node = pending.popleft()
            for edge in self._out[node]:
                if self._left[edge] > 0 and levels[self._to[edge]] < 0:
                    levels[self._to[edge]] = levels[node] + 1
                    pending.append(self._to[edge])
        return levels

    def _push(self, source: int, sink: int, levels: list[int], used: list[int]) -> int:
        """Send as much as one path bears, without recursion: graphs are thousands of nodes deep."""
        path: list[int] = []
        node = source
        while node != sink:
            while used[node] < len(self._out[node]):
                edge = self._out[node][used[node]]
                if self._left[edge] > 0 and levels[self._to[edge]] == levels[node] + 1:
                    break
                used[node] += 1
            else:
                if not path:
                    return 0
                node = self._to[path.pop() ^ 1]
                used[node] += 1
                continue
            path.append(edge)
            node = self._to[edge]
        room = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= room
            self._left[edge ^ 1] += room
        return room
