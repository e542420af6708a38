"""Batch norms in eval mode, multiplied into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.fx import Node

from frostline.tuning.drafts import Draft, arguments, calls, sample_of

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@final
@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the batch norm that is its only user, with their constants."""

    layer: Node
    norm: Node
    weight: Tensor
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    scale: Tensor | None
    shift: Tensor | None
    epsilon: float


def fold(draft: Draft) -> None:
    """Fold each batch norm whose statistics are constants into the layer before it.

    The sums are done in float64. A layer with a further user, a weight that is computed, or a norm
    over another dimension than the layer's outputs stays as it is.
    """
    for node in list(draft.graph.nodes):
        pair = _pair(draft, node)
        if pair is not None:
            _fold_one(draft, pair)
    for node in reversed(draft.graph.nodes):
        if node.op == "get_attr" and not node.users:
            draft.graph.erase_node(node)


def count_foldable(draft: Draft) -> int:
    """How many batch norms `fold` would do away with."""
    return sum(_pair(draft, node) is not None for node in draft.graph.nodes)


def _pair(draft: Draft, norm: Node) -> _Pair | None:
    if not calls(norm, "batch_norm"):
        return None
    of_norm = arguments(norm)
    layer = of_norm["input"]
    if of_norm["training"] or not _is_layer(layer) or list(layer.users) != [norm]:
        return None
    of_layer = arguments(layer)
    weight = draft.constant(of_layer["weight"])
    mean, variance = (draft.constant(of_norm[key]) for key in ("running_mean", "running_var"))
    optional = [of_layer["bias"], of_norm["weight"], of_norm["bias"]]
    if weight is None or mean is None or variance is None:
        return None
    if any(given is not None and draft.constant(given) is None for given in optional):
        return None
    bias, scale, shift = (draft.constant(given) for given in optional)
    return _Pair(layer, norm, weight, bias, mean, variance, scale, shift, of_norm["eps"])


def _is_layer(node: object) -> bool:
    if calls(node, "linear"):
        seen = sample_of(node)
        return seen is not None and seen.ndim == 2  # else the norm is over another dimension
    return calls(node, *_CONVOLUTIONS)


def _fold_one(draft: Draft, pair: _Pair) -> None:
    weight, bias = _folded(pair)
    name = pair.layer.name
    weight_node = draft.add_constant(weight, f"folded_{name}_weight", before=pair.layer)
    bias_node = draft.add_constant(bias, f"folded_{name}_bias", before=pair.layer)
    given = arguments(pair.layer) | {"weight": weight_node, "bias": bias_node}
    # `input` stays positional: torch's own passes over convolutions look for it there.
    pair.layer.args = tuple(given.values())
    pair.layer.kwargs = {}
    pair.norm.replace_all_uses_with(pair.layer)
    draft.graph.erase_node(pair.norm)


def _folded(pair: _Pair) -> tuple[Tensor, Tensor]:
    factor = (pair.variance.detach().double() + pair.epsilon).rsqrt()
    if pair.scale is not None:
        factor = factor * pair.scale.detach().double()
    centre = -pair.mean.detach().double()
    if pair.bias is not None:
        centre = centre + pair.bias.detach().double()
    shift = centre * factor
    if pair.shift is not None:
        shift = shift + pair.shift.detach().double()
    rows = factor.reshape(-1, *[1] * (pair.weight.ndim - 1))
    weight = pair.weight.detach().double() * rows
    return weight.to(pair.weight.dtype), shift.to(pair.weight.dtype)
