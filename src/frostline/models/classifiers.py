"""Which layer of a network makes its logits, how wide it is, and which class each one is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn

from frostline.errors import ModelError, nearest
from frostline.models.pooled import Pooled
from frostline.wording import either, option

LogitLayer: TypeAlias = nn.Linear | nn.Conv2d

# Of torchvision's LR-ASPP, whose logits are the sum of both.
ADDED = ("classifier.low_classifier", "classifier.high_classifier")
_AUXILIARY = "aux_classifier"
_SHOWN = 8  # classes in a line


def _instead() -> str:
    return f"Stack a head on the model's output ({option('on', 'logits')})" + either(
        ', or name the layer: replace_classifier(model, classes=..., path="...").', "."
    )


def find_classifier(model: nn.Module) -> tuple[str, ...]:
    """Dotted paths of the layers that make the logits; nearly always one.

    What timm says of its models is believed, and of LR-ASPP it is two whose outputs are added.
    Elsewhere it is the last layer with parameters in the model's last child that has any, if that
    is a `Linear` or a 1x1 `Conv2d`, or a larger one that keeps the size of maps in what is named
    a head; an auxiliary head of torchvision's is none.

    Raises:
        ModelError: there is no such layer.
    """
    if isinstance(model, Pooled) and isinstance(model.head, nn.Identity):
        raise ModelError(
            "the encoder has no classifier: its output is features. Put one on it "
            f"({option('on', 'classifier')})."
        )
    if named := _as_timm_names_it(model):
        for path in named:
            if isinstance(model.get_submodule(path), nn.Identity):
                raise ModelError(
                    f"{_name(model)} was built without a classifier: {path} is empty, and its "
                    f"output is features. Stack a head on these ({option('on', 'logits')})."
                )
            logit_layer(model, path)
        return named
    if all(path in dict(model.named_modules()) for path in ADDED):
        return ADDED
    last = _last_layer(model)
    if last is None or not _is_logit_layer(model.get_submodule(last), last):
        found = f"its last layer is {_kind(model, last)}" if last else "it has no layers"
        raise ModelError(f"{_name(model)} has no classifier to be found: {found}. {_instead()}")
    return (last,)


def decoder(model: nn.Module) -> str:
    """Path of the part of one of torchvision's segmenters that makes logits of features."""
    from torchvision.models.segmentation import LRASPP
    from torchvision.models.segmentation._utils import _SimpleSegmentationModel

    return "classifier" if isinstance(model, LRASPP | _SimpleSegmentationModel) else ""


def logit_layer(model: nn.Module, path: str) -> LogitLayer:
    """The layer at `path`.

    Raises:
        ModelError: there is no module there, or it is neither `Linear` nor a 1x1 `Conv2d`.
    """
    modules = dict(model.named_modules())
    if not path or path not in modules:
        close = ", ".join(nearest(path, [name for name in modules if name]))
        raise ModelError(f"{_name(model)} has no module {path!r}. Nearest: {close or 'none'}.")
    layer = modules[path]
    if isinstance(layer, nn.Linear | nn.Conv2d) and _is_logit_layer(layer, path):
        return layer
    raise ModelError(
        f"{path} of {_name(model)} is {_kind(model, path)}, not a Linear or a 1x1 Conv2d. "
        "Name the layer that makes the logits."
    )


def keeps_size(layer: nn.Conv2d) -> bool:
    """Whether maps are as high and wide behind the layer as before it."""
    if set(layer.stride) != {1} or set(layer.dilation) != {1}:
        return False
    around = tuple(size // 2 for size in layer.kernel_size)
    return layer.padding in (around, "same") and all(size % 2 for size in layer.kernel_size)


def widths(layer: LogitLayer) -> tuple[int, int]:
    """Features that the layer takes, and logits that it makes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def model_width(model: nn.Module) -> int:
    """Width of the model's output: its classifier's logits, or a headless timm model's features.

    Raises:
        ModelError: neither is known.
    """
    width: Any = getattr(model, "num_features", None)
    if _timm_config(model) is not None and getattr(model, "num_classes", None) == 0:
        width = getattr(model, "head_hidden_size", width)
        if isinstance(width, int):
            return width
    return widths(logit_layer(model, find_classifier(model)[0]))[1]


def own_order(classes: Sequence[str], own: Sequence[str] | None) -> tuple[str, ...]:
    """The data's classes in the order of the classifier's own names, where it has them.

    Capitals and underscores do not count. Where no name is the same, as with numbers or ids for
    names, the order stays.

    Raises:
        ModelError: some names are the classifier's, and others are not.
    """
    place = {_plain(name): number for number, name in enumerate(own or ())}
    unknown = [name for name in classes if _plain(name) not in place]
    if len(unknown) == len(classes):
        return tuple(classes)
    places = {place.get(_plain(name)) for name in classes}
    if unknown or len(places) < len(classes):
        raise ModelError(
            f"{len(classes) - len(unknown)} of the data's {len(classes)} classes are named like "
            f"those of the kept classifier, and others are not: {', '.join(unknown[:3]) or 'twice'}"
            ". Name all like the classifier's, or by their numbers from 0; or replace it "
            f"({option('on', 'classifier')})."
        )
    return tuple(sorted(classes, key=lambda name: place[_plain(name)]))


def mapping_words(order: Sequence[str], own: Sequence[str] | None) -> str:
    """One line on what each logit is taken for."""
    names = own if own is not None and len(own) == len(order) else ()
    named = [*map(_plain, names)] == [*map(_plain, order)]
    shown = list(enumerate(order))[:_SHOWN]
    if named or not names:
        pairs = [f"{number} is {name}" for number, name in shown]
    else:
        pairs = [f"{number} ({names[number]}) is {name}" for number, name in shown]
    how = "by its own names" if named else "in the order of the data's names"
    more = ", ..." if len(order) > _SHOWN else ""
    return f"of the kept classifier {how}: logit {', '.join(pairs)}{more}"


def _timm_config(model: nn.Module) -> dict[str, Any] | None:
    config: Any = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, dict) else None


def _as_timm_names_it(model: nn.Module) -> tuple[str, ...]:
    """The paths in `pretrained_cfg["classifier"]`, if all of them exist."""
    named = (_timm_config(model) or {}).get("classifier")
    paths = (named,) if isinstance(named, str) else tuple(named or ())
    modules = {name for name, _ in model.named_modules()}
    return paths if all(path in modules for path in paths) else ()


def _last_layer(model: nn.Module) -> str | None:
    """Path of the last module that has parameters of its own, in the order of definition."""
    for path, module in reversed(list(model.named_modules(remove_duplicate=False))):
        # A parametrized layer (weight norm) keeps its weight below itself.
        may_be_bare = isinstance(module, nn.Linear | nn.Conv2d)
        own = may_be_bare or any(True for _ in module.parameters(recurse=False))
        if own and not {"parametrizations", _AUXILIARY}.intersection(path.split(".")):
            return path or None
    return None


def _is_logit_layer(module: nn.Module, path: str) -> bool:
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # an attention's own output, not a classifier
    if isinstance(module, nn.Conv2d):
        # A larger one may be a backbone's last; segmentation_models_pytorch has it in a head.
        may_be_larger = "head" in path and keeps_size(module)
        return module.groups == 1 and (set(module.kernel_size) == {1} or may_be_larger)
    return isinstance(module, nn.Linear)


def _kind(model: nn.Module, path: str | None) -> str:
    layer = model.get_submodule(path or "")
    size = "x".join(map(str, layer.kernel_size)) + " " if isinstance(layer, nn.Conv2d) else ""
    return f"{path or 'the model'}, a {size}{type(layer).__name__}"


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ")
