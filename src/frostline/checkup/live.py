"""Frozen parts that would not stay the same function in training, as their layers say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

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
    for name, module in part.named_modules(prefix=path):
        rates: list[Any] = [getattr(module, word, 0) for word in _RATES]
        has_rate = any(isinstance(rate, int | float) and rate > 0 for rate in rates)
        draws = has_rate and (
            is_random_in_training(module) or isinstance(module, nn.MultiheadAttention | nn.RNNBase)
        )
        if module.training and (draws or type(module).__name__.lower() == "rrelu"):
            yield name


def moving_layers(path: str, part: nn.Module) -> Iterator[str]:
    """Layers of a part that is in train mode whose statistics follow the data; their paths."""
    for name, module in part.named_modules(prefix=path):
        if not module.training:
            continue
        momentum: Any = getattr(module, "momentum", None)  # a norm of one's own may lack it
        kinds = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
        moves = keeps_running_statistics(module) and not adapts(module)
        if moves and (momentum is None or momentum > 0):
            yield name
        elif type(module).__name__ == "_SpectralNorm" or "SpectralNorm" in kinds:
            yield name.removesuffix(".0").partition(".parametrizations")[0]


def replaced_norms(root: nn.Module) -> dict[str, nn.Module]:
    """Norms that are not held though the module around them is: they came after the freeze."""
    return {
        f"{path}.{name}" if path else name: child
        for path, module in root.named_modules()
        # A norm is held alone where it is frozen in part.
        if is_held(module) and not keeps_running_statistics(module)
        for name, child in module.named_children()
        if keeps_running_statistics(child) and not is_held(child) and not adapts(child)
    }
