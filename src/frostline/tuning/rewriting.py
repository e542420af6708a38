"""Rewritings of a draft: another dtype, another layout, batch norms folded into layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.nn.utils.fusion import fuse_conv_bn_weights

from frostline.schemas import arguments, calls
from frostline.tuning.drafts import Draft, sample_of, use_instead


def cast(draft: Draft, dtype: torch.dtype) -> None:
    """Compute in `dtype` what the draft computes in float32; integers and booleans stay.

    Statistics and weights of batch norms stay float32, which its kernels mix with `dtype`: half
    the rounding, at no cost. Numbers beyond the range of `dtype`, such as a mask's lowest float32,
    become its largest, since infinities would turn into NaN.
    """
    kept = {
        str(node.target)
        for node in draft.graph.nodes
        if node.op == "get_attr"
        and all(calls(user, "batch_norm") and user.args[0] is not node for user in node.users)
    }
    limit = torch.finfo(dtype).max
    for name, value in draft.values.items():
        if name not in kept and isinstance(value, Tensor) and value.dtype == torch.float32:
            given = value.detach()
            # Where all are in range, as almost always, that is seen in one pass without a copy.
            if given.numel() and not all(-limit <= end <= limit for end in given.aminmax()):
                given = torch.where(given.isfinite(), given.clamp(-limit, limit), given)
            draft.values[name] = given.to(dtype)
    for node in list(draft.graph.nodes):
        if node.op == "call_function":
            _cast_call(draft, node, dtype)


def _cast_call(draft: Draft, node: Node, dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype).max

    def replaced(argument: Any) -> Any:
        if argument is torch.float32:
            return dtype
        is_finite = isinstance(argument, float) and math.isfinite(argument)
        return min(max(argument, -limit), limit) if is_finite else argument

    born = _is_born_float32(node)
    node.args = map_aggregate(node.args, replaced)
    node.kwargs = map_aggregate(node.kwargs, replaced)
    if born:
        with draft.graph.inserting_after(node):
            to = draft.graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
        use_instead(node, to)


def _is_born_float32(node: Node) -> bool:
    """Whether floats come from no float here: `arange`, `zeros`, a quotient of integers."""
    given = sample_of(node)
    if given is None or given.dtype != torch.float32:
        return False
    sources = [sample_of(source) for source in node.all_input_nodes]
    return not any(s is not None and s.is_floating_point() for s in sources)


def fold(draft: Draft) -> None:
    """Fold each batch norm whose statistics are constants into the layer before it.

    The sums are done in float64. A layer with a further user, a weight that is computed, or a norm
    over another dimension than the layer's outputs stays as it is.
    """
    for norm in list(draft.graph.nodes):
        if (layer := _layer_before(draft, norm)) is not None:
            _fold_one(draft, layer, norm)
    for node in reversed(draft.graph.nodes):
        if node.op == "get_attr" and not node.users:
            draft.graph.erase_node(node)


def count_foldable(draft: Draft) -> int:
    """How many batch norms `fold` would do away with."""
    return sum(_layer_before(draft, node) is not None for node in draft.graph.nodes)


def _layer_before(draft: Draft, norm: Node) -> Node | None:
    """The layer that a norm can be folded into, if `norm` is one and there is such a layer."""
    if not calls(norm, "batch_norm"):
        return None
    of_norm = arguments(norm)
    layer = of_norm["input"]
    if of_norm["training"] or not _is_layer(layer) or list(layer.users) != [norm]:
        return None
    of_layer = arguments(layer)
    needed = [of_layer["weight"], of_norm["running_mean"], of_norm["running_var"]]
    optional = [of_layer["bias"], of_norm["weight"], of_norm["bias"]]
    needed += [given for given in optional if given is not None]
    return layer if all(draft.constant(given) is not None for given in needed) else None


def _is_layer(node: object) -> bool:
    if calls(node, "linear"):
        seen = sample_of(node)
        return seen is not None and seen.ndim == 2  # else the norm is over another dimension
    return calls(node, "conv1d", "conv2d", "conv3d")


def _fold_one(draft: Draft, layer: Node, norm: Node) -> None:
    of_layer, of_norm = arguments(layer), arguments(norm)
    given = (of_layer["weight"], of_layer["bias"], of_norm["running_mean"], of_norm["running_var"])
    values: list[Any] = list(map(draft.constant, (*given, of_norm["weight"], of_norm["bias"])))
    exact: list[Any] = [None if value is None else value.double() for value in values]
    weight, bias, mean, variance, scale, shift = exact
    # It is as right for a linear layer, whose weight has the outputs first as well.
    both = fuse_conv_bn_weights(weight, bias, mean, variance, of_norm["eps"], scale, shift)
    for name, value in zip(("weight", "bias"), both, strict=True):
        made = value.detach().to(values[0].dtype)
        of_layer[name] = draft.add_constant(made, f"folded_{layer.name}_{name}", before=layer)
    # `input` stays positional: torch's own passes over convolutions look for it there.
    layer.args = tuple(of_layer.values())
    layer.kwargs = {}
    norm.replace_all_uses_with(layer)
    draft.graph.erase_node(norm)


def lay_out_channels_last(draft: Draft) -> None:
    """Lay 4-D convolution weights out as channels-last, and let views of activations copy.

    A `view` that merges channels with pixels has no strides in this layout; `reshape` has.
    """
    for node in draft.graph.nodes:
        if calls(node, "view", "_unsafe_view"):
            if len(node.args) == 2 and not isinstance(node.args[1], torch.dtype):
                node.target = torch.ops.aten.reshape.default
        elif calls(node, "conv2d", "conv_transpose2d", "convolution"):
            weight = arguments(node)["weight"]
            constant = draft.constant(weight)
            if constant is not None and constant.ndim == 4:
                laid_out = constant.detach().contiguous(memory_format=torch.channels_last)
                draft.values[str(weight.target)] = laid_out


def make_linear_inputs_dense(draft: Draft) -> None:
    """Make the input of every linear layer contiguous; no cost where it is already.

    On a transposed input torch 2.15 multiplies sample by sample, and in bfloat16 copies the weight
    for each: ViT-B/32 of torchvision took 1.2 s instead of 0.2 s for 16 images.
    """
    for node in list(draft.graph.nodes):
        if calls(node, "linear"):
            given = node.args[0]
            with draft.graph.inserting_before(node):
                dense = draft.graph.call_function(torch.ops.aten.contiguous.default, (given,))
            dense.meta = dict(given.meta)
            node.args = (dense, *node.args[1:])


def count_convolutions(draft: Draft) -> int:
    """How many 2-D convolutions the draft computes: they are what the layout is for."""
    return sum(calls(node, "conv2d", "conv_transpose2d") for node in draft.graph.nodes)
