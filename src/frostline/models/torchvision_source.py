"""torchvision's classifiers and segmenters, with its weights and their preprocessing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from frostline.errors import ModelError, WeightsError, nearest
from frostline.models._built import LoadedModel
from frostline.models.downloads import downloading
from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.transforms import from_torchvision
from frostline.models.weights import WeightsReport
from frostline.wording import option

# Heads that see the picture half-way and only in training mode; their logits would come in a tuple.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def build_torchvision(spec: ModelSpec, weights: WeightsChoice) -> LoadedModel:
    """Any classifier or model for semantic segmentation that torchvision lists; see `Source`.

    GoogLeNet, Inception and models for segmentation come without their auxiliary heads, the first
    two with the input scaling that their published weights were trained with, so that a file of
    these gives the same numbers.
    """
    _check_name(spec.name)
    from torchvision import models

    entries = models.get_model_weights(spec.name)
    entry = None if weights.kind == "none" else _entry(entries, spec, weights)
    removed = _removed(spec.name)
    model = _bare(spec.name) if entry is None else _published(spec.name, entry)
    if spec.name in _AUXILIARY:
        model.aux_logits = False  # type: ignore[assignment]  # a plain attribute of these two
    for path in removed:
        setattr(model, path, None)
    preprocessing = from_torchvision((entry or entries.DEFAULT).transforms())
    if entry is None:
        return LoadedModel(model, preprocessing, WeightsReport.none(), spec, removed=removed)
    report = WeightsReport(f"torchvision {entry}", loaded=len(model.state_dict()))
    classes = tuple(entry.meta.get("categories", ())) or None
    return LoadedModel(model, preprocessing, report, spec, classes, removed)


def _segments(name: str) -> bool:
    """Whether it is a model for semantic segmentation."""
    from torchvision import models

    return name in models.list_models(module=models.segmentation)


def _removed(name: str) -> tuple[str, ...]:
    """The auxiliary heads that a model may have."""
    # LR-ASPP has none, and no checkpoint has tensors for one.
    return ("aux_classifier",) if _segments(name) else _AUXILIARY.get(name, ())


def _check_name(name: str) -> None:
    from torchvision import models

    classifiers = models.list_models(module=models)
    if name in classifiers or _segments(name):
        return
    if name in models.list_models():
        raise ModelError(
            f"torchvision's {name!r} neither classifies nor segments. Choose one that does, such "
            "as resnet50, or write a function that returns a model and name it file.py:function."
        )
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        if name in timm.list_models() or name in timm.list_models(include_tags=True):
            raise ModelError(f"torchvision has no model {name!r}, but timm has: use timm:{name}.")
    raise ModelError(
        f"torchvision has no model {name!r}. Nearest: {', '.join(nearest(name, classifiers))}. "
        "Other sources: timm:NAME and path/to/file.py:function."
    )


def _entry(entries: Any, spec: ModelSpec, weights: WeightsChoice) -> Any:
    if weights.name == "DEFAULT":
        return entries.DEFAULT
    names = [entry.name for entry in entries]  # without the alias DEFAULT
    if weights.name not in names:
        raise WeightsError(
            f"{spec} has no weights {weights.name!r}. It has DEFAULT, {', '.join(names)}; "
            f"or give a file ({option('weights', 'FILE')}), or none."
        )
    return entries[weights.name]


def _bare(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if name in _AUXILIARY:
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    if _segments(name):
        options = {"weights_backbone": None}  # torchvision would download some
    if name.startswith("vit_"):
        # These take one size only, and vit_h_14's DEFAULT weights and preprocessing have 518.
        entry = models.get_model_weights(name).DEFAULT
        options = {"image_size": entry.meta["min_size"][0]}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _published(name: str, entry: Any) -> nn.Module:
    from torchvision import models

    copy = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    cure = f"The copy at {copy} seems damaged: delete it." if copy.is_file() else ""
    with downloading(f"weights {entry.name} of {name} from {entry.url}", cure=cure):
        model: nn.Module = models.get_model(name, weights=entry, progress=sys.stderr.isatty())
    # vgg16's IMAGENET1K_FEATURES has no classifier: its tensors there are NaN.
    bad = [key for key, value in model.named_parameters() if bool(value.isnan().any())]
    if bad:
        raise WeightsError(
            f"weights {entry.name} of {name} hold NaN in {', '.join(bad[:5])}. "
            f"They are made for another use; choose {option('weights', 'DEFAULT')}."
        )
    return model
