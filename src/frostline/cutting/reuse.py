"""What was drawn before for the same model object, as long as nothing that it rests on has changed.

Following a model takes longer than training a head on stored features, and a second run with
another learning rate starts from the same model. What is reused is checked on the example like
anything new, and its tensors against its key: what was changed behind our back shows there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from frostline.cutting.graphs import OpenGraph
from frostline.cutting.structures import InputSpec, Rebuild


@final
@dataclass(frozen=True)
class Drawn:
    """All of a cut that does not refer to the model object itself.

    Attributes:
        training, evaluation: the suffix in each mode, and what makes the model's output of it.
    """

    prefix: OpenGraph
    training: tuple[OpenGraph, Rebuild]
    evaluation: tuple[OpenGraph, Rebuild]
    frontier: tuple[Any, ...]
    why: str
    share: float
    key: Mapping[str, str]


@final
@dataclass(frozen=True)
class _Kept:
    state: tuple[object, ...]
    drawn: Drawn


# One entry for each model that is alive; it goes with the model.
_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def keep(model: nn.Module, spec: InputSpec, tensors: list[Tensor], drawn: Drawn) -> None:
    """Remember what was drawn for the model as it is now, in train mode."""
    _KEPT[model] = _Kept(_state(model, spec, tensors), drawn)


def recall(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Drawn | None:
    """What was drawn for this very model, if it and the form of its inputs are as they were."""
    kept = _KEPT.get(model)
    if kept is None or kept.state != _state(model, spec, tensors):
        return None
    return kept.drawn


def _state(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> tuple[object, ...]:
    """Identities of modules, tensors and hooks, switches and modes, autocast, shapes of inputs."""
    return (
        tuple(
            (
                id(m),
                type(m),
                m.training,
                id(m.__dict__.get("forward")),
                tuple(m._forward_hooks),
                tuple(m._forward_pre_hooks),
            )
            for m in model.modules()
        ),
        tuple((id(p), p.requires_grad, p.device) for p in model.parameters()),
        tuple(id(b) for b in model.buffers()),
        tuple((t.shape[1:], t.dtype, t.device) for t in tensors),
        tuple(
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {t.device.type for t in tensors}
        ),
        spec.tree,
        spec.leaves,
    )
