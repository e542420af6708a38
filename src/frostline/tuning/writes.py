"""In-place operations of a prefix, kept away from the caller's inputs and the model's tensors."""

from __future__ import annotations

import torch
from torch.fx import Node

from frostline.tuning.drafts import Draft, calls, schema_of, use_instead

# They return their input itself in eval mode, or views of it, and their schemas do not say so.
_UNDECLARED_ALIASES = (
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "broadcast_tensors",
    "meshgrid",
    "pad",
    "pin_memory",
    "to_dense",
    "type_as",
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
        for target in _written(node):
            written |= sources[target]
    return [node for node in draft.graph.nodes if node in written]


def _aliased(node: Node) -> list[Node]:
    """Inputs of a node whose memory its result may share."""
    schema = schema_of(node)
    if schema is None:  # picking from a tuple, a higher-order operator, a module: it may be any
        return node.all_input_nodes
    if calls(node, *_UNDECLARED_ALIASES):
        return node.all_input_nodes
    return _arguments_marked(node, schema, only_written=False)


def _written(node: Node) -> list[Node]:
    """Inputs of a node that it writes into."""
    schema = schema_of(node)
    return [] if schema is None else _arguments_marked(node, schema, only_written=True)


def _arguments_marked(
    node: Node, schema: torch.FunctionSchema, *, only_written: bool
) -> list[Node]:
    marked: list[Node] = []
    for position, argument in enumerate(schema.arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        alias = argument.alias_info
        if alias is not None and (alias.is_write or not only_written):
            values = value if isinstance(value, list | tuple) else [value]
            marked += [entry for entry in values if isinstance(entry, Node)]
    return marked
