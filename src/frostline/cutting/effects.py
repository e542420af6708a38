"""What an operation does besides computing: draw random numbers, write in place, move statistics.

Read from the operation's schema; where torch's schemas do not tell (batch norm moves its
statistics without saying so), from the tables here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

# Arguments that switch an operation's randomness off: by a false mode, or by a zero probability.
_MODES = frozenset({"train", "training", "is_training"})
_PROBABILITIES = frozenset({"p", "dropout", "dropout_p"})
_DROPOUTS = frozenset(
    f"aten::{kind}dropout" for kind in ("", "alpha_", "feature_", "feature_alpha_")
)
# Operations that move the running statistics they are given, when told to use the batch's own.
_MOVES_STATISTICS = {
    "batch_norm": "training",
    "native_batch_norm": "training",
    "cudnn_batch_norm": "training",
    "instance_norm": "use_input_stats",
}


def is_assertion(node: fx.Node) -> bool:
    """Whether the operation only checks something."""
    name = str(getattr(node.target, "__name__", ""))  # a name of the model's is plain text
    return "_assert" in name or "sym_constrain_range" in name


def is_pure(node: fx.Node) -> bool:
    """Whether leaving the operation out changes nothing but its own value."""
    return not (is_random(node) or any(written(node)) or moves_statistics(node))


def is_random(node: fx.Node) -> bool:
    """Whether the operation draws random numbers, given its arguments."""
    return any(_draws(inner) for inner in _operations(node))


def hands_on(node: fx.Node) -> bool:
    """Whether the operation is a dropout that drops nothing: its value is its input, no copy."""
    name = node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""
    return name.removesuffix("_") in _DROPOUTS and not is_random(node)


def moves_statistics(node: fx.Node) -> bool:
    """Whether the operation uses the batch's own statistics, and moves running ones."""
    return any(_uses_batch_statistics(inner) for inner in _operations(node))


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that the operation writes in place."""
    schema = _schema(node)
    if schema is not None:
        given = _by_name(node)
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = given.get(argument.name)
                yield from (v for v in _leaves(value) if isinstance(v, fx.Node))
    for graph, outer in _subgraphs(node):
        inner_of = dict(zip(graph.find_nodes(op="placeholder"), outer, strict=False))
        for inner in graph.nodes:
            for base in written(inner):
                if isinstance(found := inner_of.get(base), fx.Node):
                    yield found


def is_symbolic(node: fx.Node) -> bool:
    """Whether the node's value is a size or a number computed from sizes."""
    value = node.meta.get("val")
    return isinstance(value, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


def reads_only_shape(node: fx.Node) -> bool:
    """Whether the operation looks at its tensor's shape alone."""
    return node.target in (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default)


def is_plain(target: object) -> bool:
    """Whether the target is arithmetic on numbers, or takes an element of a tuple."""
    return getattr(target, "__module__", "") in (operator.__name__, "_operator", "math", "builtins")


def _draws(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return not (is_plain(target) or _is_higher_order(target) or _is_symbolic_function(target))
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    for name, value in _with_defaults(node):
        if name in _MODES and value is False:
            return False
        if name in _PROBABILITIES and isinstance(value, int | float) and value == 0:
            return False
    return True


def _uses_batch_statistics(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.partition("::")[2]
    given = dict(_with_defaults(node))
    # Without running statistics each sample is normalised by its own, in training as ever.
    by_sample = name == "instance_norm" and given["running_mean"] is None
    return given.get(_MOVES_STATISTICS.get(name, "")) is True and not by_sample


def _operations(node: fx.Node) -> Iterator[fx.Node]:
    """The node itself, and those inside it if it wraps a graph."""
    if node.op == "call_function":
        yield node
        for graph, _ in _subgraphs(node):
            for inner in graph.nodes:
                yield from _operations(inner)


def _subgraphs(node: fx.Node) -> Iterator[tuple[fx.Graph, list[Any]]]:
    """Graphs that a higher-order operation runs, with what it hands to their placeholders."""
    if node.op != "call_function" or not _is_higher_order(node.target):
        return
    for place, argument in enumerate(node.args):
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            owner: Any = argument.graph.owning_module
            for part in str(argument.target).split("."):
                owner = getattr(owner, part, None)
            if isinstance(owner, fx.GraphModule):
                handed = [leaf for value in node.args[place + 1 :] for leaf in _leaves(value)]
                yield owner.graph, handed


def _is_higher_order(target: object) -> bool:
    return isinstance(target, torch._ops.HigherOrderOperator)


def _is_symbolic_function(target: object) -> bool:
    return isinstance(target, Callable) and str(  # type: ignore[arg-type]  # a typing construct
        getattr(target, "__name__", "")
    ).startswith("sym_")


def _schema(node: fx.Node) -> Any:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


def _by_name(node: fx.Node) -> dict[str, Any]:
    schema = _schema(node)
    names = [argument.name for argument in schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _with_defaults(node: fx.Node) -> Iterator[tuple[str, Any]]:
    given = _by_name(node)
    for argument in _schema(node).arguments:
        yield argument.name, given.get(argument.name, argument.default_value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value
