"""Calls of torch's operators in a graph, read by the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree


def schema_of(node: Node) -> torch.FunctionSchema | None:
    """The schema of the operator that a node calls; `None` for any other node."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema
    return None


def calls(node: object, *operators: str) -> bool:
    """Whether `node` calls one of those aten operators, in any overload: `conv2d`, `view`."""
    schema = schema_of(node) if isinstance(node, Node) else None
    return schema is not None and schema.name.removeprefix("aten::") in operators


def arguments(node: Node) -> dict[str, Any]:
    """The arguments by the names in the schema, in order, defaults filled in; none without one."""
    schema = schema_of(node)
    if schema is None:
        return {}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}


def aliased(node: Node, *, written: bool = False) -> list[Node]:
    """Arguments whose memory the result may share, as the schema has it; or that are written."""
    schema, given = schema_of(node), arguments(node)
    marked = [
        argument
        for argument in (schema.arguments if schema else ())
        if argument.alias_info is not None and (argument.alias_info.is_write or not written)
    ]
    leaves = pytree.tree_leaves([given[argument.name] for argument in marked])
    return [leaf for leaf in leaves if isinstance(leaf, Node)]
