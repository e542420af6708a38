"""Frozen parts that would not stay the same function in training, as their layers say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.freezing.modes import adapts, is_held, is_random_in_training
from frostline.selectors.kinds import keeps_running_statistics

# What layers of torch, torchvision and timm call their rate.
_RATES = ("p", "drop_prob", "dropout", "drop_rate")


def frozen_parts(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules below `root` whose parameters are all frozen, with their paths."""
    for name, child in root.named_children():
        wanted = {parameter.requires_grad for parameter in child.parameters()}
        if wanted == {False}:
            yield name, child
        elif wanted:
            yield from ((f"{name}.{path}", part) for path, part in frozen_parts(child))


def random_layers(path: str, part: nn.Module) -> Iterator[str]:
    """Layers of a part that is in train mode which draw random numbers; their paths."""
    for name, module in _training(path, part):
        named = is_random_in_training(module) or isinstance(
            module, nn.MultiheadAttention | nn.RNNBase
        )
        if (named and any(_rate(module, word) for word in _RATES)) or type(
            module
        ).__name__.lower() == "rrelu":
            yield name


def moving_layers(path: str, part: nn.Module) -> Iterator[str]:
    """Layers of a part that is in train mode whose statistics follow the data; their paths."""
    for name, module in _training(path, part):
        if keeps_running_statistics(module) and not adapts(module) and _moves(module):
            yield name
        elif type(module).__name__ == "_SpectralNorm" or _has_spectral_hook(module):
            yield name.removesuffix(".0").partition(".parametrizations")[0]


def replaced_norms(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Norms that are not held though the module around them is: they came after the freeze."""
    for path, module in root.named_modules():
        if not is_held(module) or keeps_running_statistics(module):
            continue  # a norm is held alone where it is frozen in part
        for name, child in module.named_children():
            if keeps_running_statistics(child) and not is_held(child) and not adapts(child):
                yield f"{path}.{name}" if path else name, child


def batch_bound_layers(path: str, part: nn.Module) -> Iterator[str]:
    """Batch norms without statistics of their own: they use each batch's, in eval mode too."""
    for name, module in part.named_modules(prefix=path):
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            yield name


def _training(path: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in part.named_modules(prefix=path):
        if module.training:
            yield name, module


def _rate(module: nn.Module, word: str) -> bool:
    value: Any = getattr(module, word, None)
    return isinstance(value, int | float) and value > 0


def _moves(module: nn.Module) -> bool:
    momentum: Any = getattr(module, "momentum", None)  # a norm of one's own may lack it
    return momentum is None or momentum > 0


def _has_spectral_hook(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return any(type(hook).__name__ == "SpectralNorm" for hook in hooks)
