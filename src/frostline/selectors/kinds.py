"""`kind:` - what a parameter is, by the module that owns it and by its own name.

Norm layers, and which of them keep statistics that training moves, stand here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from frostline.selectors.inventory import Occurrence

_LINEARS = (nn.Linear, nn.Bilinear)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_BIAS = re.compile(r"bias|.*_bias|bias_.*")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_STATISTIC = re.compile(r"(running|moving)_(mean|var|std|avg|sq)\w*")
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
        isinstance(_layer(place), EMBEDDINGS) or _POSITION.fullmatch(place.leaf) is not None
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


def is_norm_layer(module: nn.Module) -> bool:
    """Whether `module` normalises: torch's norms, and by their names or statistics any other."""
    has_layers = any(True for child in module.children() for _ in child.parameters())
    named = is_called(module, "norm") and not has_layers
    return isinstance(module, _NORMS) or named or keeps_running_statistics(module)


def keeps_running_statistics(module: nn.Module) -> bool:
    """Whether training moves statistics of the module: batch and instance norms of any class."""
    # One of a class of its own is known by a tensor that is called as torch calls them
    # (`running_mean`) or as many write them (`moving_var`). The batch norms that are called frozen
    # (torchvision's `FrozenBatchNorm2d`) have them as constants.
    tensors = (module._buffers, module._parameters, module.__dict__)
    named = (name for own in tensors for name, value in own.items() if isinstance(value, Tensor))
    return any(map(_STATISTIC.fullmatch, named)) and not is_called(module, "frozen")


def class_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's class and its bases, the nearest first."""
    return tuple(base.__name__ for base in type(module).__mro__ if base is not object)


def is_called(module: nn.Module, word: str) -> bool:
    """Whether the word is in the name of the module's class or of a base of it."""
    return any(word in name.lower() for name in class_names(module))
