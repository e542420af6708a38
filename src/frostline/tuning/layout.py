"""A draft whose activations and weights lie in memory as the fast kernels read them."""

from __future__ import annotations

import torch

from frostline.tuning.drafts import Draft, arguments, calls

_CONVOLUTIONS = ("conv2d", "conv_transpose2d", "convolution")


def lay_out_channels_last(draft: Draft) -> None:
    """Lay 4-D convolution weights out as channels-last, and let views of activations copy.

    A `view` that merges channels with pixels has no strides in this layout; `reshape` has.
    """
    for node in draft.graph.nodes:
        if calls(node, "view", "_unsafe_view"):
            if len(node.args) == 2 and not isinstance(node.args[1], torch.dtype):
                node.target = torch.ops.aten.reshape.default
        elif calls(node, *_CONVOLUTIONS):
            weight = arguments(node)["weight"]
            constant = draft.constant(weight)
            if constant is not None and constant.ndim == 4:
                laid_out = constant.detach().contiguous(memory_format=torch.channels_last)
                draft.values[str(weight.target)] = laid_out


def feed_linear_densely(draft: Draft) -> None:
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
