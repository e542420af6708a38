"""Where in a value's dimensions its samples lie, and the value with one row for each sample.

Most networks keep the batch in dimension 0. Others put the sequence first, or fold the batch with
time, windows or heads into one dimension. The features' row is one sample whichever it is: the
prefix moves the samples to the front, and the suffix moves them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten
CONTIGUOUS: dict[str, Any] = {"memory_format": torch.contiguous_format}
Do = Callable[..., Any]  # calls an operator: now, or later as a node of a graph


def now(operator: Any, arguments: tuple[Any, ...], named: dict[str, Any] | None = None) -> Any:
    """Calls the operator, as `fx.Graph.call_function` notes it down."""
    return operator(*arguments, **(named or {}))


@final
@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the samples lie in a tensor.

    Attributes:
        dim: the dimension that counts them.
        fold: whether they are the outer or the inner part of it, beside positions of each sample;
            None if it counts nothing else.
    """

    dim: int
    fold: Literal["outer", "inner"] | None = None

    def rows(self, value: Any, like: Any, do: Do = now) -> Any:
        """The value as one row for each sample, of which `like` has a row each; a view."""
        if self == ROWS_FIRST:
            return value
        if self.fold is not None:
            count = do(_ATEN.sym_size.int, (like, 0))
            sizes = [count, -1] if self.fold == "outer" else [-1, count]
            value = do(_ATEN.unflatten.int, (value, self.dim, sizes))
        return do(_ATEN.movedim.int, (value, self._place, 0))

    def restored(self, rows: Any, do: Do = now) -> Any:
        """The value that these are the rows of, dense in memory unless it is the rows."""
        if self == ROWS_FIRST:
            return rows
        value = do(_ATEN.movedim.int, (rows, 0, self._place))
        value = do(_ATEN.clone.default, (value,), CONTIGUOUS)
        if self.fold is not None:
            value = do(_ATEN.flatten.using_ints, (value, self.dim, self.dim + 1))
        return value

    @property
    def _place(self) -> int:
        """Where the samples are once the dimension is unfolded."""
        return self.dim + (self.fold == "inner")


ROWS_FIRST = RowLayout(0)


def layouts_of(node: fx.Node) -> tuple[RowLayout, ...]:
    """The ways in which the samples can lie in the node's tensor, by its symbolic shape."""
    batch = _batch(node)
    counting = [
        (dim, size)
        for dim, size in sizes_of(node)
        if batch & getattr(size, "free_symbols", frozenset())
    ]
    if len(counting) != 1:
        return ()
    dim, size = counting[0]
    if size in batch:
        return (RowLayout(dim),)
    if times_batch(node, size) is not None:
        return RowLayout(dim, "outer"), RowLayout(dim, "inner")
    return ()


def times_batch(node: fx.Node, size: Any) -> Any:
    """How many times the number of samples a size of the node's is; None if it is no multiple."""
    for counted in _batch(node) & getattr(size, "free_symbols", frozenset()):
        positions, rest = size.as_independent(counted, as_Add=False)
        if rest == counted and positions.is_integer:
            return positions
    return None


def row_sizes(node: fx.Node, layout: RowLayout) -> tuple[int | None, ...]:
    """Shape of one sample's value; None for a size that varies with the sample."""
    return tuple(size if isinstance(size, int) else None for size in row_symbols(node, layout))


def row_symbols(node: fx.Node, layout: RowLayout) -> tuple[Any, ...]:
    """The same with the symbolic expression of each size that varies."""
    sizes = [size for _, size in sizes_of(node)]
    counted = sizes.pop(layout.dim)
    if layout.fold is not None:
        sizes.insert(layout.dim, times_batch(node, counted))
    return tuple(int(s) if isinstance(s, int) or s.is_number else s for s in sizes)


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
