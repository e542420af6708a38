"""Weights that no gradient moves, as libraries for quantisation put into layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.tensor_parts import is_wrapped


def why_inert(places: Iterable[tuple[str, nn.Module]], *, asked: str) -> str:
    """Why the first frozen weight that takes no gradient cannot train, and what to do; or nothing.

    Args:
        places: dotted names of tensors, each with the module that owns it.
        asked: the selector that is to train them.
    """
    for name, owner in places:
        leaf = name.rpartition(".")[2]
        if (weight := _inert(owner, leaf)) is not None:
            return (
                f"{name} is of class {type(weight).__name__}, a kind of tensor that takes no "
                "gradient: it would want one and never move. Dequantise it first, as "
                "layer.weight = torch.nn.Parameter(layer.weight.dequantize()), or leave it out: "
                f"'({asked}) & ~{name}'."
            )
    return ""


def _inert(owner: nn.Module, leaf: str) -> Tensor | None:
    """The weight, where the layer's function on one sample gives it no part in the graph.

    Asked of layers whose function is known. No class tells: of some quantised weights the library
    gives a gradient itself, others are wrapped floats.
    """
    is_known = isinstance(owner, nn.Linear | nn.Embedding) and leaf == "weight"
    weight = owner._parameters.get(leaf) if is_known else None
    if weight is None or weight.requires_grad or not is_wrapped(weight):
        return None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            made = _output(owner, weight.detach().requires_grad_())
    except Exception:
        return None  # it takes another input than this; doctor tells, with an example
    return None if made.requires_grad else weight


def _output(layer: nn.Module, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return F.embedding(torch.zeros(1, dtype=torch.long, device=weight.device), weight)
    sample = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return F.linear(sample, weight)
