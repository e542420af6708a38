"""Where to cut: the set of frozen nodes to compute once, by minimum cut.

An epoch pays for each sample to read the bytes that cross the line, and to compute again the
frozen operations above it. Both are put in one unit, bytes, by prices that depend on shapes
alone, so that the line runs at the same place in every run and on every machine.

Source: L. R. Ford and D. R. Fulkerson, Maximal flow through a network (1956).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx

from frostline.cutting import effects
from frostline.cutting.layouts import RowLayout, row_sizes
from frostline.cutting.trial import Observed
from frostline.cutting.verdicts import Verdicts

# Floating-point operations in the time that reading one byte of a stored feature takes: about
# 1e11 a second against 1e9 bytes a second from the page cache.
_FLOPS_PER_BYTE = 100
# A cheap operation passes its output through memory once, at ten times that speed.
_PASS = 0.1
_LONG = 128  # positions
_DEAR = 1 << 20
WIDER = 32
"""How many times the bytes of a sample may be kept to save what costs less than reading them."""
_INFINITE = 1 << 60
# Passes through memory, beside views and what goes element by element.
_QUICK = {
    *("embedding", "index", "gather", "index_select", "cat", "arange", "_to_copy", "dropout"),
    *("layer_norm", "native_layer_norm", "rms_norm", "mean", "sum", "softmax", "cumsum"),
    *("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones"),
    *("pad", "constant_pad_nd", "repeat", "one_hot", "argmax", "type_as", "scalar_tensor"),
}


def choose(
    verdicts: Verdicts, trial: Observed, layouts: Mapping[fx.Node, RowLayout]
) -> tuple[frozenset[fx.Node], list[fx.Node]]:
    """The nodes to compute once per sample, and those of them that the rest reads, in order.

    Of nodes below the line there are none but inputs where nothing can be kept, or is worth it.

    Args:
        layouts: of the nodes whose values can be kept, since they have a row for each sample.
    """
    below = _below(verdicts, trial, layouts, price=1)
    if all(node.op == "placeholder" for node in below):
        # Computing is cheap beside reading, as in small networks: the last line there is. It
        # still saves reading and preparing the sample itself, but is not worth any room: rows of
        # an embedding take hundreds of times what the tokens do.
        last = _below(verdicts, trial, layouts, price=_DEAR)
        sample = sum(row_bytes(node, trial) for node in below)
        kept = sum(row_bytes(node, trial) for node in _crossing(verdicts, last))
        if kept <= WIDER * sample or not all(_is_known(node, trial) for node in last):
            below = last
    return below, _crossing(verdicts, below)


def _crossing(verdicts: Verdicts, below: frozenset[fx.Node]) -> list[fx.Node]:
    return [
        node
        for node in verdicts.carriers
        if node in below
        and any(user not in below and not effects.reads_only_shape(user) for user in node.users)
    ]


def _kept_bytes(node: fx.Node, trial: Observed, layout: RowLayout, *, price: int) -> int:
    """What keeping the value costs, in bytes.

    One that is as wide as its sample is long, as a mask of all pairs of tokens, costs as for
    samples that are not short, and is never kept to save a cheap operation: padded again it would
    not be what the plain model has.
    """
    seen = layout.rows(trial.values[node], trial.samples[0]).shape[1:]
    sizes = zip(row_sizes(node, layout), seen, strict=True)
    ragged = [int(found) for size, found in sizes if size is None]
    longer = [max(_LONG / size, 1.0) for size in ragged[1:] if size]
    dear = price if len(ragged) > 1 else 1
    return int(row_bytes(node, trial) * math.prod(longer)) * dear


def _doubled(
    verdicts: Verdicts, trial: Observed, layouts: Mapping[fx.Node, RowLayout]
) -> set[fx.Node]:
    """Nodes that both halves may compute: as wide as their sample is long, like masks of pairs.

    Nothing writes into their memory. Of others each is computed in one half alone, so that what
    is kept does not change with small differences of price.
    """
    written = {storage for node in trial.traced.nodes for storage in trial.written(node)}
    wide = (
        n for n in verdicts.carriers if n in layouts and row_sizes(n, layouts[n]).count(None) > 1
    )
    return {node for node in wide if trial.storage[node] not in written}


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


def _is_known(node: fx.Node, trial: Observed) -> bool:
    """Whether what it costs is known: counted, or a few passes through memory at most."""
    target = node.target
    if node.op != "call_function" or trial.flops.get(node, 0.0):
        return True
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False  # a kernel of one's own may be as dear as it likes
    name = str(target.overloadpacket).removeprefix("aten.")
    return target.is_view or torch.Tag.pointwise in target.tags or name in _QUICK


def _is_view(node: fx.Node, trial: Observed) -> bool:
    shared = [trial.storage.get(argument) for argument in node.all_input_nodes]
    own = trial.storage.get(node)
    return own is not None and own in shared and not trial.written(node)


def _below(
    verdicts: Verdicts, trial: Observed, layouts: Mapping[fx.Node, RowLayout], *, price: int
) -> frozenset[fx.Node]:
    import networkx

    network = networkx.DiGraph()
    network.add_nodes_from(("inputs", "rest"))
    known = set(verdicts.carriers)
    doubled = _doubled(verdicts, trial, layouts)

    def edge(start: object, end: object, capacity: int = _INFINITE) -> None:
        # Backwards: of several lines that cost the same, networkx then gives the lowest.
        network.add_edge(end, start, capacity=capacity)

    # Of the two places of a node one stands for computing it below, the other for keeping it.
    for node in verdicts.carriers:
        computed, kept = (node, "computed"), (node, "kept")
        # Another view of what is kept is worth no room, however dear computing is.
        own = (1 if _is_view(node, trial) else price) * _cost(node, trial)
        edge("inputs", computed, _INFINITE if node.op == "placeholder" else own)
        layout = layouts.get(node)
        kept_bytes = _kept_bytes(node, trial, layout, price=price) if layout else _INFINITE
        edge(computed, kept, kept_bytes)
        for user in node.users:
            if effects.reads_only_shape(user):
                continue
            if user in known:
                edge(kept, (user, "computed"))
                if node not in doubled:
                    # Built into one half alone: what is computed below has all it reads below.
                    edge((user, "computed"), computed)
            elif user in verdicts.reasons:
                edge(kept, "rest")
    for group in verdicts.together:
        ring = [node for node in group if node in known]
        for one, other in zip(ring, [*ring[1:], *ring[:1]], strict=True):
            edge((one, "computed"), (other, "computed"))
    flow = networkx.algorithms.flow.dinitz
    _, (_, reached) = networkx.minimum_cut(network, "rest", "inputs", flow_func=flow)
    return frozenset(node for node in verdicts.carriers if (node, "computed") in reached)
