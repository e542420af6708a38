"""The graph in evaluation, told from that in training where no more than dropout differs.

Following a forward takes longer than anything else of a cut. Whether what is told here is what the
model computes, is checked on the example like any graph.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from typing import Final

import torch
from torch import fx, nn

from frostline.cutting.tracing import Traced, module_path
from frostline.cutting.watching import MODE, Structure

_LAYERS: Final = frozenset(
    {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout}
)
_NAMES: Final = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_DROPS: Final = frozenset(
    getattr(torch.ops.aten, name + ending).default for name in _NAMES for ending in ("", "_")
)
_TRAIN: Final = 2  # the place of their argument that says whether to drop


def evaluated(traced: Traced, structure: Structure, model: nn.Module) -> Traced | None:
    """What the forward is in evaluation; None where the model is to be followed again for that.

    Args:
        traced: the forward in training.
        structure: of the model in training, in what that forward read of it.
        model: in evaluation now.
    """
    if traced.reads.sets_modes:
        return None
    differing = structure.differing(Structure.of(model, traced.reads))
    if not differing:
        return traced
    layers = {path: model.get_submodule(path) for path in differing}
    if not all(
        type(layer) in _LAYERS and "forward" not in vars(layer) for layer in layers.values()
    ):
        return None
    if any(words != {MODE} for words in differing.values()):
        return None
    own = {id(layer) for layer in layers.values()}
    paths = {path for path, m in model.named_modules(remove_duplicate=False) if id(m) in own}
    return _without(traced, paths)


def _without(traced: Traced, paths: Collection[str]) -> Traced | None:
    """The graph in which these layers drop nothing; None where it is not only they that would."""
    graph = deepcopy(traced.module.graph)  # its nodes; what they hold is the same
    for node in graph.nodes:
        if module_path(node) not in paths or node.op != "call_function":
            continue
        if node.target not in _DROPS or len(node.args) <= _TRAIN or node.args[_TRAIN] is not True:
            return None
        node.update_arg(_TRAIN, False)
    return replace(traced, module=fx.GraphModule(traced.module, graph))
