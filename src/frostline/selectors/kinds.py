"""`kind:` - what a parameter is, by the module that owns it and by its own name."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd

from frostline.selectors.inventory import Occurrence
from frostline.selectors.norms import is_called, is_norm_layer

_LINEARS = (nn.Linear, nn.Bilinear)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_POSITION = re.compile(r"pos(ition(al)?)?_?emb(ed(ding)?s?)?")


def _norm(place: Occurrence) -> bool:
    return is_norm_layer(_layer(place))


def _bias(place: Occurrence) -> bool:
    return place.leaf == "bias" or place.leaf.endswith("_bias") or place.leaf.startswith("bias_")


def _conv(place: Occurrence) -> bool:
    return isinstance(_layer(place), _ConvNd)


def _linear(place: Occurrence) -> bool:
    layer = _layer(place)
    # transformers' Conv1D (GPT-2) is a linear layer with a transposed weight.
    return isinstance(layer, _LINEARS) or type(layer).__name__ == "Conv1D"


def _embedding(place: Occurrence) -> bool:
    return isinstance(_layer(place), _EMBEDDINGS) or _POSITION.fullmatch(place.leaf) is not None


def _attention(place: Occurrence) -> bool:
    return any(is_called(owner, "attention") or is_called(owner, "attn") for owner in place.owners)


KINDS: dict[str, Callable[[Occurrence], bool]] = {
    "norm": _norm,
    "bias": _bias,
    "conv": _conv,
    "linear": _linear,
    "embedding": _embedding,
    "attention": _attention,
}


def _layer(place: Occurrence) -> nn.Module:
    """The owner, or the layer it parametrizes where the owner is part of a parametrization."""
    segments = place.name.split(".")
    if "parametrizations" in segments:
        return place.owners[segments.index("parametrizations")]
    return place.owner
