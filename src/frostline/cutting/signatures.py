"""Content hashes of the graph's nodes: equal for equal computations on equal tensors.

They find the frost line of one mode's graph in another's, and name the prefix for the store: the
texts that `prefix_key` hashes stay as they are, or nothing that was stored is found again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
import xxhash
from torch import fx

from frostline.cutting import effects
from frostline.cutting.regions import regions_of
from frostline.cutting.tracing import Traced
from frostline.cutting.trial import Observed
from frostline.fingerprints import Fingerprint, digest

_Name = Callable[[fx.Node], str]


def signatures(trial: Observed) -> dict[fx.Node, str]:
    """A hash for each node, of the computation that gives it from the inputs.

    Tensors that the graph reads count by identity, constants of the forward by content. A value
    that has been written into has another hash for whatever reads it afterwards.
    """
    traced = trial.traced
    own: dict[fx.Node, str] = {}
    current: dict[fx.Node, str] = {}
    inputs = list(traced.module.graph.find_nodes(op="placeholder"))
    for node in traced.nodes:
        if node.op == "placeholder":
            text = f"input {inputs.index(node)}"
        elif node.op == "get_attr":
            text = _read(traced, node)
        elif effects.hands_on(node):  # so that training and evaluation are alike
            own[node] = current[node] = current[node.all_input_nodes[0]]
            continue
        else:
            text = _call(node, current.__getitem__)
        own[node] = current[node] = _hash(text)
        for storage in trial.written(node):
            for member in trial.members[storage]:
                if member in current:  # computed before: whatever reads it from here on
                    current[member] = _hash(f"{current[member]} after {own[node]}")
    return own


def settled(
    trial: Observed, hashes: Mapping[fx.Node, str], below: Collection[fx.Node]
) -> dict[fx.Node, str]:
    """The hashes of the nodes' values when all that is below the line has been computed.

    Two values that are equal as computed are no longer so when one of them is written into.
    """
    found: dict[fx.Node, str] = {}
    for node in trial.traced.nodes:
        found[node] = hashes[node]
        writes = node in below and not effects.hands_on(node)
        for storage in trial.written(node) if writes else ():
            for member in trial.members[storage]:
                if member in found:
                    found[member] = _hash(f"{found[member]} after {hashes[node]}")
    return found


def outline(traced: Traced) -> list[str]:
    """What the graph computes on which tensors, node by node; names of modules do not count."""

    def line(node: fx.Node, name: _Name) -> str:
        return _read(traced, node) if node.op == "get_attr" else f"{node.op} {_call(node, name)}"

    return _numbered(traced.nodes, line)[0]


def prefix_key(traced: Traced, below: Collection[fx.Node], crossing: Collection[fx.Node]) -> str:
    """A hash of what the nodes below the line compute; names of modules do not count."""

    def line(node: fx.Node, name: _Name) -> str:
        return _call(node, name) if node.op == "call_function" else node.op

    lines, numbers = _numbered((node for node in traced.nodes if node in below), line)
    return _hash("\n".join([*lines, "out " + " ".join(numbers[node] for node in crossing)]))


def prefix_tensors(traced: Traced, below: Collection[fx.Node]) -> Fingerprint:
    """Content hash of every tensor that the nodes below the line read, in their order."""
    read = [traced.tensor(n) for n in traced.nodes if n in below and n.op == "get_attr"]
    return Fingerprint({str(place): digest(tensor) for place, tensor in enumerate(read)})


def _numbered(
    nodes: Iterable[fx.Node], line: Callable[[fx.Node, _Name], str]
) -> tuple[list[str], dict[fx.Node, str]]:
    """A line for each node, which tells other nodes by their number, and these numbers."""
    numbers: dict[fx.Node, str] = {}
    lines = []
    for node in nodes:
        lines.append(line(node, lambda other: numbers.get(other, "?")))
        numbers[node] = f"%{len(numbers)}"
    return lines, numbers


def _read(traced: Traced, node: fx.Node) -> str:
    tensor = traced.tensor(node)
    is_constant = node.target in traced.constants
    return f"constant {digest(tensor)}" if is_constant else f"read {id(tensor)}"


def _call(node: fx.Node, name: _Name) -> str:
    arguments = _text(node.args, name)
    named = _text({key: node.kwargs[key] for key in sorted(node.kwargs)}, name)
    return " ".join([*map(str, regions_of(node)), f"{node.target} {arguments} {named}"])


def _text(value: Any, name: _Name) -> str:
    if isinstance(value, fx.Node):
        return name(value)
    if isinstance(value, tuple | list):
        return "[" + ",".join(_text(part, name) for part in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_text(v, name)}" for k, v in value.items()) + "}"
    if isinstance(value, torch.SymInt):
        return str(value.node.expr)
    return repr(value)


def _hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
