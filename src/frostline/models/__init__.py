"""Models from torchvision, timm or a file, with weights, preprocessing and a head that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from frostline.models._built import Built
from frostline.models.heads import (
    Headed,
    HeadPlace,
    Stacked,
    build_head,
    check_head,
    find_classifier,
    logits_of,
    put_head,
    replace_classifier,
    stack_head,
)
from frostline.models.sources import build
from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.weights import WeightsReport, load_weights, read_state_dict
from frostline.preprocessing import Preprocessing

__all__ = [
    "Built",
    "HeadPlace",
    "Headed",
    "LoadedModel",
    "ModelSpec",
    "Stacked",
    "WeightsReport",
    "build",
    "build_head",
    "check_head",
    "find_classifier",
    "load_model",
    "load_weights",
    "logits_of",
    "put_head",
    "read_state_dict",
    "replace_classifier",
    "stack_head",
]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be frozen and trained.

    Attributes:
        model: ends in the wanted number of logits.
        head: dotted path of the module that makes them, or is put to it.
        preprocessing: what turns a picture into the model's input.
        weights: what was loaded.
        spec: what was asked for.
        classes: names of the published weights' classes in the order of their logits, where known.
    """

    model: nn.Module
    head: str
    preprocessing: Preprocessing
    weights: WeightsReport
    spec: ModelSpec
    classes: tuple[str, ...] | None = None


def load_model(
    model: str,
    *,
    weights: str,
    classes: int,
    hidden: Sequence[int] = (),
    on: HeadPlace = "classifier",
    seed: int | None = 0,
) -> LoadedModel:
    """Build a model, load its weights and give it a head for `classes` classes.

    Weights from a file must fit name for name, except under the classifier that `on="classifier"`
    replaces: there the file may lack tensors or have another number of classes.

    Args:
        model: `alexnet`, `torchvision:NAME`, `timm:NAME` or `path/to/file.py:function`.
        weights: `DEFAULT`, `none`, a file, or the name of torchvision's entry.
        hidden, on: as for `put_head`.
        seed: of every random value; None draws from torch's generator.

    Raises:
        ConfigError: a width or `on` is out of range; found before anything is built.
        ModelError: the model cannot be found or built, or the head cannot be put.
        WeightsError: the weights cannot be had, read or fitted.
    """
    spec = ModelSpec.parse(model)
    check_head(classes=classes, hidden=hidden, on=on)
    built = _with_weights(spec, WeightsChoice.parse(weights), on=on, seed=seed)
    headed = put_head(built.model, classes=classes, hidden=hidden, on=on, seed=seed)
    return LoadedModel(
        headed.model, headed.head, built.preprocessing, built.weights, spec, built.classes
    )


def _with_weights(
    spec: ModelSpec, weights: WeightsChoice, *, on: HeadPlace, seed: int | None
) -> Built:
    if weights.kind != "file" or on != "classifier":
        return build(spec, weights=str(weights), seed=seed)
    bare = build(spec, weights="none", seed=seed)
    replaced = find_classifier(bare.model)
    report = load_weights(bare.model, weights.path, replaced=replaced, removed=bare.removed)
    return replace(bare, weights=report)
