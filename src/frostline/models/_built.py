"""What every source of models gives and takes, and the seed of its random values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.weights import WeightsReport
from frostline.preprocessing import Preprocessing, TextPreprocessing


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with what belongs to it.

    Attributes:
        model: gives its logits in training and in evaluation mode.
        preprocessing: what turns a picture or texts into the model's input, as the published
            weights want it, also where none were loaded.
        weights: what was loaded.
        spec: what was asked for.
        classes: the class names of the published weights that were loaded, in the logits' order.
        removed: module paths that the architecture has in training only and that were taken out;
            a checkpoint may still hold tensors for them.
        head: dotted path of the module that makes the wanted number of logits, or is put to it;
            empty as the source made the model.
    """

    model: nn.Module
    preprocessing: Preprocessing | TextPreprocessing
    weights: WeightsReport
    spec: ModelSpec
    classes: tuple[str, ...] | None = None
    removed: tuple[str, ...] = ()
    head: str = ""

    @property
    def of_pictures(self) -> Preprocessing:
        """The preprocessing of a model that takes pictures.

        Raises:
            ModelError: it takes texts.
        """
        if isinstance(self.preprocessing, Preprocessing):
            return self.preprocessing
        raise ModelError(
            f"{self.spec} reads texts, and the data are pictures. Choose a model of pictures, such "
            "as resnet50, or give a table of texts."
        )

    @property
    def of_texts(self) -> TextPreprocessing:
        """The preprocessing of a model that takes texts.

        Raises:
            ModelError: it takes pictures.
        """
        if isinstance(self.preprocessing, TextPreprocessing):
            return self.preprocessing
        raise ModelError(
            f"{self.spec} reads pictures, and the data are texts. Choose a model of texts: "
            "hf:FOLDER or hf:NAME."
        )


# Builds one kind of `ModelSpec` with published weights or none; the choice is never a `file`.
# Raises ModelError where there is no such model here or it cannot be built, and WeightsError where
# the published weights cannot be had.
Source: TypeAlias = Callable[[ModelSpec, WeightsChoice], LoadedModel]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from torch's CPU generator as seeded by `seed` inside the block; restore it afterwards.

    `None` draws from the caller's generator, as plain torch does. Layers are made on the CPU
    and moved, so the values do not depend on the device they end up on.
    """
    if seed is None:
        yield
        return
    # `torch.manual_seed` would reseed every accelerator as well, which `devices=[]` does not save.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
