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
_BIAS = re.compile(r"bias|.*_bias|bias_.*")
_POSITION = re.compile(r"pos(ition(al)?)?_?emb(ed(ding)?s?)?")


# transformers' Conv1D (GPT-2) is a linear layer with a transposed weight.
KINDS: dict[str, Callable[[Occurrence], bool]] = {
    "norm": lambda place: is_norm_layer(_layer(place)),
    "bias": lambda place: _BIAS.fullmatch(place.leaf) is not None,
    "conv": lambda place: isinstance(_layer(place), _ConvNd),
    "linear": lambda place: (
        isinstance(_layer(place), _LINEARS) or type(_layer(place)).__name__ == "Conv1D"
    ),
    "embedding": lambda place: (
        isinstance(_layer(place), _EMBEDDINGS) or _POSITION.fullmatch(place.leaf) is not None
    ),
    "attention": lambda place: any(
        is_called(owner, "attention") or is_called(owner, "attn") for owner in place.owners
    ),
}


def _layer(place: Occurrence) -> nn.Module:
    """The owner, or the layer it parametrizes where the owner is part of a parametrization."""
    segments = place.name.split(".")
    if "parametrizations" in segments:
        return place.owners[segments.index("parametrizations")]
    return place.owner
