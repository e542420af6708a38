"""What every source of models gives, and what it owes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.weights import WeightsReport
from frostline.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Built:
    """A model with what belongs to it.

    Attributes:
        model: gives its logits in training and in evaluation mode.
        preprocessing: of the published weights, also where none were loaded.
        weights: what was loaded.
        classes: the class names of the published weights that were loaded, in the logits' order.
        removed: module paths that the architecture has in training only and that were taken out;
            a checkpoint may still hold tensors for them.
    """

    model: nn.Module
    preprocessing: Preprocessing
    weights: WeightsReport
    classes: tuple[str, ...] | None = None
    removed: tuple[str, ...] = ()


class Source(Protocol):
    """Builds one kind of `ModelSpec`."""

    def __call__(self, spec: ModelSpec, weights: WeightsChoice) -> Built:
        """Build with published weights or none; `weights.kind` is never `file`.

        Raises:
            ModelError: there is no such model here, or it cannot be built.
            WeightsError: the published weights cannot be had.
        """
        ...
