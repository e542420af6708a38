"""How long a sample's values are: sizes that follow the lengths of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor, fx

from frostline.cutting.tracing import Unfollowed


@final
@dataclass(frozen=True, slots=True)
class OwnLength:
    """A size of one sample's value, as it follows from how long its inputs are.

    Attributes:
        expression: in symbols, by sympy.
        inputs: symbol -> number of the input whose second dimension it is.
    """

    expression: Any
    inputs: tuple[tuple[Any, int], ...]

    def of(self, tensors: Sequence[Tensor]) -> int:
        """The size for a batch of these inputs `(batch, length, ...)`."""
        return _evaluated(self, tuple(int(tensors[number].shape[1]) for _, number in self.inputs))


@final
@dataclass(frozen=True, slots=True)
class Straight:
    """A size that is `factor` times the length of one input, and `offset`; needs no sympy.

    Attributes:
        symbol: stands for the length.
        number: of the input.
    """

    factor: int
    offset: int
    symbol: str
    number: int

    def subs(self, known: Mapping[Any, int]) -> int:
        """The size for the length in `known`, as an expression of sympy's gives it."""
        return self.factor * known[self.symbol] + self.offset


def straight(length: OwnLength) -> Straight | None:
    """The same size where it follows one input in a straight line; None elsewhere."""
    if isinstance(length.expression, Straight):
        return length.expression
    if len(length.inputs) != 1:
        return None
    ((symbol, number),) = length.inputs
    factor, offset = length.expression.coeff(symbol, 1), length.expression.coeff(symbol, 0)
    if not (factor.is_Integer and offset.is_Integer):
        return None
    if length.expression != factor * symbol + offset:
        return None
    return Straight(int(factor), int(offset), str(symbol), number)


@lru_cache(maxsize=4096)
def _evaluated(length: OwnLength, sizes: tuple[int, ...]) -> int:
    known = {symbol: size for (symbol, _), size in zip(length.inputs, sizes, strict=True)}
    return int(length.expression.subs(known))


def varying(graph: fx.Graph) -> tuple[int, ...]:
    """Numbers of the inputs whose second dimension is as long as the samples are."""
    lengths = map(_length, graph.find_nodes(op="placeholder"))
    return tuple(number for number, length in enumerate(lengths) if length is not None)


def length_symbols(graph: fx.Graph) -> Mapping[Any, int]:
    """Symbol of a varying length -> number of the first input that has it."""
    found: dict[Any, int] = {}
    for number, node in enumerate(graph.find_nodes(op="placeholder")):
        if (length := _length(node)) is not None:
            found.setdefault(length, number)
    return found


def own_length(size: Any, symbols: Mapping[Any, int]) -> OwnLength:
    """What a symbolic size follows.

    Raises:
        Unfollowed: it is no function of how long the inputs are.
    """
    if not size.free_symbols <= symbols.keys():
        raise Unfollowed(f"a value that crosses the line has {size} positions, which no input has.")
    return OwnLength(size, tuple((s, n) for s, n in symbols.items() if s in size.free_symbols))


def _length(node: fx.Node) -> Any:
    """The symbol of an input's second dimension; None where that is fixed."""
    seen = node.meta["val"]
    size: Any = seen.shape[1] if isinstance(seen, Tensor) and seen.dim() > 1 else 0
    varies = isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
    return size.node.expr if varies else None
