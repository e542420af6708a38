"""Where in a value's dimensions its samples lie, and the value with one row for each sample.

Most networks keep the batch in dimension 0. Others put the sequence first, or fold the batch with
time, windows or heads into one dimension. The features' row is one sample whichever it is: the
prefix moves the samples to the front, and the suffix moves them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten
_CONTIGUOUS: dict[str, Any] = {"memory_format": torch.contiguous_format}


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples lie in a tensor.

    Attributes:
        dim: the dimension that counts them.
        fold: whether they are the outer or the inner part of it, beside positions of each sample;
            None if it counts nothing else.
    """

    dim: int
    fold: Literal["outer", "inner"] | None = None

    def rows(self, value: Tensor, count: int) -> Tensor:
        """The value as one row for each of so many samples; a view."""
        if self.fold is not None:
            sizes = (count, -1) if self.fold == "outer" else (-1, count)
            value = torch.unflatten(value, self.dim, sizes)
        return value.movedim(self._place, 0)

    def restored(self, rows: Tensor) -> Tensor:
        """The value that these are the rows of."""
        value = rows.movedim(0, self._place)
        return value if self.fold is None else value.flatten(self.dim, self.dim + 1)

    @property
    def _place(self) -> int:
        """Where the samples are once the dimension is unfolded."""
        return self.dim + (self.fold == "inner")


def layouts_of(node: fx.Node) -> tuple[Layout, ...]:
    """The ways in which the samples can lie in the node's tensor, by its symbolic shape."""
    counting = [(dim, size) for dim, size in sizes_of(node) if _batch(node) & _symbols(size)]
    if len(counting) != 1:
        return ()
    dim, size = counting[0]
    if size in _batch(node):
        return (Layout(dim),)
    if _positions(node, size) is not None:
        return Layout(dim, "outer"), Layout(dim, "inner")
    return ()


def times_batch(node: fx.Node, size: Any) -> int | None:
    """How many times the number of samples a size of the node's is, if it is a multiple of it."""
    found = _positions(node, size)
    return None if found is None or not found.is_number else int(found)


def _positions(node: fx.Node, size: Any) -> Any:
    """The size by the number of samples; None if it is no multiple of it."""
    for counted in _batch(node) & _symbols(size):
        positions, rest = size.as_independent(counted, as_Add=False)
        if rest == counted and positions.is_integer:
            return positions
    return None


def is_row_each(node: fx.Node) -> bool:
    """Whether the node's tensor has one row for each sample, and no other dimension counts them."""
    return layouts_of(node) == (Layout(0),)


def row_sizes(node: fx.Node, layout: Layout) -> tuple[int | None, ...]:
    """Shape of one sample's value; None for a size that varies with the sample."""
    sizes = [size for _, size in sizes_of(node)]
    counted = sizes.pop(layout.dim)
    if layout.fold is not None:
        sizes.insert(layout.dim, _positions(node, counted))
    return tuple(int(size) if _is_number(size) else None for size in sizes)


def rows_first(graph: fx.Graph, value: fx.Node, layout: Layout, counted: fx.Node) -> fx.Node:
    """Operations that give `layout.rows` of the value; `counted` has a row for each sample."""
    if layout == Layout(0):
        return value
    if layout.fold is not None:
        count = graph.call_function(_ATEN.sym_size.int, (counted, 0))
        sizes: Any = [count, -1] if layout.fold == "outer" else [-1, count]
        value = graph.call_function(_ATEN.unflatten.int, (value, layout.dim, sizes))
    return graph.call_function(_ATEN.movedim.int, (value, layout._place, 0))


def rows_back(graph: fx.Graph, rows: fx.Node, layout: Layout) -> fx.Node:
    """Operations that give the value whose rows these are, dense in memory."""
    if layout == Layout(0):
        return rows
    value = graph.call_function(_ATEN.movedim.int, (rows, 0, layout._place))
    value = graph.call_function(_ATEN.clone.default, (value,), _CONTIGUOUS)
    if layout.fold is not None:
        value = graph.call_function(_ATEN.flatten.using_ints, (value, layout.dim, layout.dim + 1))
    return value


def sizes_of(node: fx.Node) -> Iterator[tuple[int, Any]]:
    """Each dimension of the node's tensor with its symbolic size."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        for dim, size in enumerate(value.shape):
            yield dim, size.node.expr if isinstance(size, torch.SymInt) else size


def _batch(node: fx.Node) -> frozenset[Any]:
    """What counts the samples: inputs that never meet keep a symbol each."""
    inputs = node.graph.find_nodes(op="placeholder")
    return frozenset(i.meta["batch"] for i in inputs if i.meta.get("batch") is not None)


def _symbols(size: Any) -> frozenset[Any]:
    return frozenset() if isinstance(size, int) else frozenset(size.free_symbols)


def _is_number(size: Any) -> bool:
    return isinstance(size, int) or bool(size.is_number)
