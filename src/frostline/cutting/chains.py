"""A suffix that is a chain: linear layers in a row, with activations and dropout between.

Chains of one shape can be run together, as one product over the stacked weights of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, final

import torch
from torch import Tensor, fx
from torch.nn.functional import linear

from frostline.cutting.graphs import OpenGraph
from frostline.cutting.suffix import Suffix
from frostline.cutting.tracing import own_name

_aten = torch.ops.aten
# Element by element, so that a member's numbers stay its own. What writes in place gives the same
# numbers where it does not.
_NAMES = "relu gelu silu tanh sigmoid elu hardswish leaky_relu hardtanh softplus mish"
_ACTIVATIONS: Final = {
    getattr(_aten, f"{name}{end}").default: getattr(_aten, name).default
    for name in _NAMES.split()
    for end in ("", "_")
    if hasattr(_aten, f"{name}{end}")
}
_DROPOUT: Final = _aten.dropout.default
_FLATTEN: Final = _aten.flatten.using_ints
_LINEAR: Final = _aten.linear.default


@final
@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A linear layer, by the names that the model has for its tensors; `bias` may be empty."""

    weight: str
    bias: str = ""

    @property
    def path(self) -> str:
        """Of the module that holds them."""
        return self.weight.rpartition(".")[0]


@final
@dataclass(frozen=True, slots=True)
class Activation:
    """An operation on each element, with what it takes besides."""

    operation: Callable[..., Tensor]
    further: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class DropoutLayer:
    """Dropout with this probability, while training."""

    p: float


@final
@dataclass(frozen=True, slots=True)
class FlattenLayer:
    """All dimensions but the batch become one."""


Layer: TypeAlias = LinearLayer | Activation | DropoutLayer | FlattenLayer


class Draws(Protocol):
    """What dropout keeps: `(members or 1, batch, width)` of zeros and `1 / (1 - p)`."""

    def __call__(self, p: float, shape: Sequence[int], like: Tensor, /) -> Tensor: ...


@final
@dataclass(frozen=True, slots=True)
class Chain:
    """Layers from features `(batch, width)` to logits.

    Attributes:
        layers: in the order of the computation.
        place: of the value that it takes among those of the frontier.
    """

    layers: tuple[Layer, ...]
    place: int = 0

    @property
    def linears(self) -> tuple[LinearLayer, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, LinearLayer))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors that it reads."""
        return tuple(n for one in self.linears for n in (one.weight, one.bias) if n)

    @property
    def has_dropout(self) -> bool:
        """Whether there is dropout, of whatever probability."""
        return any(isinstance(layer, DropoutLayer) for layer in self.layers)

    def run(
        self, values: Tensor, tensors: Mapping[str, Tensor], draws: Draws | None = None
    ) -> Tensor:
        """The logits of all members, `(members, batch, classes)`.

        Args:
            values: features that all members take, `(batch, ...)` with a leading 1, or of each
                member its own, `(members, batch, ...)`.
            tensors: stacked, `(members, *shape)`.
            draws: of dropout while training; None is evaluation.
        """
        for layer in self.layers:
            match layer:
                case LinearLayer(weight, bias):
                    values = _products(values, tensors[weight], tensors[bias] if bias else None)
                case Activation(operation, further, named):
                    values = operation(values, *further, **dict(named))
                case FlattenLayer():
                    values = values.flatten(2)
                case DropoutLayer(p) if draws is not None and p > 0:
                    values = values * draws(p, values.shape[1:], values)
        return values


def chain_of(suffix: Suffix) -> Chain | str:
    """The suffix as a chain; where it is none, what stands in the way, for people."""
    made, other = (_chain(suffix.graph(training=mode)) for mode in (True, False))
    if isinstance(made, str) or isinstance(other, str):
        return made if isinstance(made, str) else str(other)
    if _without_dropout(made) != _without_dropout(other):
        return "it computes otherwise in evaluation"
    return made


def _without_dropout(chain: Chain) -> Chain:
    layers = (layer for layer in chain.layers if not isinstance(layer, DropoutLayer))
    return Chain(tuple(layers), chain.place)


def _chain(graph: OpenGraph | None) -> Chain | str:
    if graph is None:
        return "it runs the forward of the model itself"
    if any(_title(node) == "batch_norm" for node in graph.nodes):
        return "it holds batch_norm"  # which counts its batches beside the chain
    names = {place.name for place in graph.places}
    layers, place = list[Layer](), 0
    last: fx.Node | None = None
    inputs = graph.inputs
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        if node.op == "output":
            (given,) = node.args
            if not isinstance(given, tuple | list) or list(given) != [last]:
                return "it gives more than its logits"
            return Chain(tuple(layers), place)
        taken = node.args[0] if node.args else None
        if last is None and taken in inputs:
            place = inputs.index(taken)  # type: ignore[arg-type]  # a node
        elif taken is not last or last is None:
            return f"it is no chain of layers: {_title(node)} takes more than the layer before"
        made = _layer(node, names)
        if isinstance(made, str):
            return made
        layers += [] if made is None else [made]
        last = node
    return "it gives nothing"


def _layer(node: fx.Node, names: set[str]) -> Layer | str | None:
    """The layer that an operation is; None where it does nothing, a text where it is none."""
    _, *further = node.args
    if node.target == _LINEAR:
        read = [own_name(str(n.target)) if isinstance(n, fx.Node) else "" for n in further]
        if any(name and name not in names for name in read):
            return "it multiplies by what is no tensor of the model"
        return LinearLayer(*read)
    if any(isinstance(one, fx.Node) for one in (*further, *node.kwargs.values())):
        return f"it holds {_title(node)}"
    if node.target in _ACTIVATIONS:
        return Activation(_ACTIVATIONS[node.target], tuple(further), tuple(node.kwargs.items()))
    if node.target == _DROPOUT:
        return DropoutLayer(float(further[0])) if further[1] else None  # type: ignore[arg-type]  # a number
    if node.target == _FLATTEN and further[:1] == [1] and further[1:] in ([], [-1]):
        return FlattenLayer()
    return f"it holds {_title(node)}"


def _title(node: fx.Node) -> str:
    target: Any = node.target
    is_operator = isinstance(target, torch._ops.OpOverload)
    return str(target._schema.name.partition("::")[2]) if is_operator else str(node.target)


def _products(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`(1 or members, batch, in)` times `(members, out, in)`: `(members, batch, out)`.

    Of values that are everyone's it is one product with all weights side by side, of which the
    members are columns.
    """
    members, width = weight.shape[:2]
    if len(values) == 1:
        every = linear(values[0], weight.flatten(0, 1), None if bias is None else bias.flatten())
        return every.view(len(every), members, width).transpose(0, 1)
    if bias is None:
        return torch.bmm(values, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), values, weight.transpose(1, 2))


def with_head(
    chain: Chain, path: str, hidden: Sequence[int], dropout: float | None = None
) -> Chain | None:
    """The chain with what `put_head` puts at `path`, where another head was.

    Args:
        dropout: probability behind each hidden layer; None puts none there.
    Returns:
        None where there is none of linear layers.
    """
    places = [n for n, layer in enumerate(chain.layers) if _is_at(layer, path)]
    if not places:
        return None
    if not hidden:
        made: list[Layer] = [LinearLayer(f"{path}.weight", f"{path}.bias")]
    else:
        made = []
        for number in range(len(hidden)):
            made += [_linear_at(f"{path}.{2 * number}"), Activation(_aten.relu.default)]
            made += [] if dropout is None else [DropoutLayer(dropout)]
        made.append(_linear_at(f"{path}.{2 * len(hidden)}"))
    return Chain((*chain.layers[: places[0]], *made, *chain.layers[places[-1] + 1 :]), chain.place)


def _is_at(layer: Layer, path: str) -> bool:
    return isinstance(layer, LinearLayer) and f"{layer.path}.".startswith(f"{path}.")


def with_dropout(chain: Chain, p: float) -> Chain:
    """The chain with this probability in all its dropout."""
    layers = (DropoutLayer(p) if isinstance(x, DropoutLayer) else x for x in chain.layers)
    return Chain(tuple(layers), chain.place)


def _linear_at(path: str) -> LinearLayer:
    return LinearLayer(f"{path}.weight", f"{path}.bias")
