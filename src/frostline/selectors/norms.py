"""What a norm layer is, and which of them keep statistics that training moves."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_STATISTIC = re.compile(r"(running|moving)_(mean|var|std|avg|sq)\w*")


def is_norm_layer(module: nn.Module) -> bool:
    """Whether `module` normalises: torch's norms, and by their names or statistics any other."""
    has_layers = any(True for child in module.children() for _ in child.parameters())
    named = is_called(module, "norm") and not has_layers
    return isinstance(module, _NORMS) or named or keeps_running_statistics(module)


def keeps_running_statistics(module: nn.Module) -> bool:
    """Whether training moves statistics of the module: batch and instance norms of any class.

    One of a class of its own is known by a tensor that is called as torch calls them
    (`running_mean`) or as many write them (`moving_var`). The batch norms that are called frozen
    (torchvision's `FrozenBatchNorm2d`) have them as constants.
    """
    tensors = (module._buffers, module._parameters, module.__dict__)
    named = (name for own in tensors for name, value in own.items() if isinstance(value, Tensor))
    return any(map(_STATISTIC.fullmatch, named)) and not is_called(module, "frozen")


def class_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's class and its bases, the nearest first."""
    return tuple(base.__name__ for base in type(module).__mro__ if base is not object)


def is_called(module: nn.Module, word: str) -> bool:
    """Whether the word is in the name of the module's class or of a base of it."""
    return any(word in name.lower() for name in class_names(module))
