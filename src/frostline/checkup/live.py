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


def layers_between(root: nn.Module) -> Iterator[str]:
    """Layers of `nn.Sequential` that draw random numbers and stand between frozen layers.

    They have no parameters, so no freeze is asked for them: AlexNet's dropouts where its last
    layer alone trains. Those beside a trainable layer are left out, which they may be meant for.
    """
    last: nn.Module | None = None  # the layer with parameters before, in the model's order
    for path, module in root.named_modules():
        children = list(module.named_children()) if isinstance(module, nn.Sequential) else []
        before = last
        for place, (name, layer) in enumerate(children):
            if next(layer.parameters(), None) is not None:
                before = layer
                continue
            later = (child for _, child in children[place + 1 :])
            behind = next((c for c in later if next(c.parameters(), None) is not None), None)
            if all(map(_is_frozen, (before, behind))):
                yield from random_layers(f"{path}.{name}" if path else name, layer)
        if next(module.parameters(recurse=False), None) is not None:
            last = module


def _is_frozen(layer: nn.Module | None) -> bool:
    return layer is not None and not any(p.requires_grad for p in layer.parameters())


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
