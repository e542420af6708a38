"""Rows that nobody reads are not computed: tokens beside the one that a head takes.

A vision transformer's head reads its class token alone, so of the last block only what makes that
token matters: its attention reads the keys and values of all tokens, but one query, one row of the
projection and one of the MLP will do. What is computed is computed as before, by products of fewer
rows, whose kernels may sum in another order: last bits may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten

# Which row of which dimension of a value is all that is read of it.
Row = tuple[int, int]
_Rule = Callable[[fx.Node, Row], Iterator[tuple[fx.Node, Row]]]

_ROW_BY_ROW = (
    *(_ATEN.gelu.default, _ATEN.relu.default, _ATEN.silu.default, _ATEN.tanh.default),
    *(_ATEN.sigmoid.default, _ATEN.hardswish.default, _ATEN.neg.default),
    *(_ATEN.clone.default, _ATEN.contiguous.default),
)
_OF_TWO = (_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor)
_RESHAPES = (_ATEN.view.default, _ATEN.reshape.default)


def narrow(graph: fx.Graph) -> int:
    """Leave out of `graph` the rows that no `select` takes; gives how many selects that served.

    Each node's `meta["val"]` has the shape of its value, for some number of samples.
    """
    _unflatten_linears(graph)
    found, made = _rows_read(graph), dict[tuple[fx.Node, Row], fx.Node]()

    def row_of(node: fx.Node, row: Row) -> fx.Node:
        """The node's row: computed alone, or a view of all where these are read as well."""
        key = node, row  # who reads all of it may take another row
        if key not in made:
            with graph.inserting_after(node):
                made[key] = graph.call_function(_ATEN.slice.Tensor, (node, *row, row[1] + 1))
            made[key].meta = _meta_of_row(node, row)
        return made[key]

    computed = [(node, row, _passed(node, row)) for node, row in found.items()]
    for node, row, passed in reversed(computed):  # in the order of the graph
        if passed:
            given = {one: row_of(one, of) for one, of in passed.items()}
            with graph.inserting_after(node):
                made[node, row] = _of_row(graph, node, row, given)
            made[node, row].meta = _meta_of_row(node, row)
    served = [node for node in graph.nodes if any(key in made for key in _started(node).items())]
    for node in served:
        (key,) = _started(node).items()
        node.args = (made[key], _args(node)[1], 0)
    left = {node for node, _ in made}
    for node in reversed(list(graph.nodes)):
        if node in left and not node.users:
            graph.erase_node(node)
    return len(served)


def _rows_read(graph: fx.Graph) -> dict[fx.Node, Row]:
    """Of each node of which one row alone is read, by all who read it, that row; the last first."""
    wanted: dict[fx.Node, list[Row | None]] = {}
    found: dict[fx.Node, Row] = {}
    for node in reversed(graph.nodes):
        first, *others = wanted.get(node, [None])
        if first is not None and all(other == first for other in others):
            found[node] = first
        passed = _passed(node, found[node]) if node in found else _started(node)
        for given in node.all_input_nodes:
            wanted.setdefault(given, []).append(passed.get(given))
    return found


def _started(node: fx.Node) -> dict[fx.Node, Row]:
    """What a `select` reads of its argument."""
    if node.target is not _ATEN.select.int:
        return {}
    given, dim, index = _args(node)
    shape = _shape(given)
    if not shape or not isinstance(index, int):
        return {}
    size = shape[dim]
    return {given: (dim % len(shape), index)} if 0 <= index < size and size > 1 else {}


def _passed(node: fx.Node, row: Row) -> dict[fx.Node, Row]:
    """The arguments of which one row makes one of the node; of the others all is read."""
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    return {} if rule is None else dict(rule(node, row))


def _same(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    yield _args(node)[0], row


def _dropout(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    given, share, training = _args(node)
    if not (share and training):  # what it drops of all rows is drawn at once
        yield given, row


def _of_two(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    shape = _shape(node)
    for given in node.all_input_nodes:
        own = _shape(given)
        dim = row[0] - (len(shape) - len(own))
        if dim >= 0 and own[dim] == shape[row[0]]:  # else it is the same for all rows
            yield given, (dim, row[1])


def _layer_norm(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    given, normalized, *_ = _args(node)
    if row[0] < len(_shape(node)) - len(normalized):
        yield given, row


def _linear(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    if row[0] < len(_shape(node)) - 1:
        yield _args(node)[0], row


def _transpose(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    given, *dims = _args(node)
    one, other = (dim % len(_shape(node)) for dim in dims)
    yield given, ({one: other, other: one}.get(row[0], row[0]), row[1])


def _permute(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    given, dims = _args(node)
    yield given, (dims[row[0]] % len(dims), row[1])


def _slice(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    given, dim, *_ = (*_args(node), 0)
    if dim % len(_shape(node)) != row[0] and len(node.all_input_nodes) == 1:
        yield given, row


def _attention(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    """One query, where nothing is masked or dropped."""
    query, *others = _args(node)
    is_plain = len(others) == 2 and set(node.kwargs) <= {"scale"}
    if is_plain and row[0] == len(_shape(node)) - 2 and query not in others:
        yield query, row


def _reshape(node: fx.Node, row: Row) -> Iterator[tuple[fx.Node, Row]]:
    """Where the dimensions up to that of the row stay, and those behind are joined or divided."""
    given, sizes = _args(node)
    upto = row[0] + 1
    if _shape(given)[:upto] == _shape(node)[:upto] and isinstance(sizes[row[0]], int):
        yield given, row


_RULES: Mapping[Any, _Rule] = {
    **dict.fromkeys(_ROW_BY_ROW, _same),
    **dict.fromkeys(_OF_TWO, _of_two),
    **dict.fromkeys(_RESHAPES, _reshape),
    _ATEN.dropout.default: _dropout,
    _ATEN.layer_norm.default: _layer_norm,
    _ATEN.linear.default: _linear,
    _ATEN.transpose.int: _transpose,
    _ATEN.permute.default: _permute,
    _ATEN.slice.Tensor: _slice,
    _ATEN.scaled_dot_product_attention.default: _attention,
}


def _of_row(graph: fx.Graph, node: fx.Node, row: Row, given: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node over rows of its arguments."""
    copied = graph.node_copy(node, lambda one: given.get(one, one))
    if node.target in _RESHAPES:
        whole, sizes = _args(copied)
        copied.args = (whole, [1 if at == row[0] else size for at, size in enumerate(sizes)])
    return copied


def _unflatten_linears(graph: fx.Graph) -> None:
    """`view(linear(reshape(x, [a * b, c])), [a, b, d])` -> `linear(reshape(x, [a, b, c]))`.

    As torch's own attention has it; the product is the same one.
    """
    for node in list(graph.nodes):
        linear = _args(node)[0] if node.target in _RESHAPES else None
        flat = _args(linear)[0] if _is_sole(linear, (_ATEN.linear.default,)) else None
        if not _is_sole(linear, (_ATEN.linear.default,)) or not _is_sole(flat, _RESHAPES):
            continue
        inner, whole, (*rows, width) = _args(flat)[0], _shape(node), _shape(flat)
        if len(whole) != 3 or len(rows) != 1 or _shape(inner)[:2] != whole[:2]:
            continue
        with graph.inserting_before(node):
            sizes = [*_args(node)[1][:2], width]
            apart = graph.call_function(_ATEN.reshape.default, (inner, sizes))
            apart.meta = {**flat.meta, "val": flat.meta["val"].new_empty((*whole[:2], width))}
            made = graph.call_function(_ATEN.linear.default, (apart, *_args(linear)[1:]))
            made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        for old in (node, linear, flat):
            graph.erase_node(old)


def _is_sole(node: object, targets: Collection[Any]) -> TypeGuard[fx.Node]:
    """Whether it is one of these calls, and read once."""
    return isinstance(node, fx.Node) and node.target in targets and len(node.users) == 1


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _shape(node: object) -> tuple[int, ...]:
    """Of a node's value; empty where it is not known."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _meta_of_row(node: fx.Node, row: Row) -> dict[str, Any]:
    shape = list(_shape(node))
    shape[row[0]] = 1
    return {**node.meta, "val": node.meta["val"].new_empty(shape)}
