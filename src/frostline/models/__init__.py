"""Models from torchvision, timm, transformers or a file: weights, preprocessing, a fitting head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from frostline.choices import FloatName, HeadPlace
from frostline.errors import ModelError
from frostline.models._built import LoadedModel as LoadedModel
from frostline.models._built import Source
from frostline.models._built import seeded as seeded
from frostline.models.classifiers import find_classifier as find_classifier
from frostline.models.classifiers import logit_layer
from frostline.models.file_source import build_from_file
from frostline.models.heads import Headed as Headed
from frostline.models.heads import Stacked as Stacked
from frostline.models.heads import build_head as build_head
from frostline.models.heads import check_head as check_head
from frostline.models.heads import logits_of as logits_of
from frostline.models.heads import put_head as put_head
from frostline.models.heads import replace_classifier as replace_classifier
from frostline.models.heads import set_dropout as set_dropout
from frostline.models.heads import stack_head as stack_head
from frostline.models.hf_source import build_hf
from frostline.models.hf_source import reads_texts as reads_texts
from frostline.models.matching import find_match
from frostline.models.pooled import Pooled as Pooled
from frostline.models.spec import ModelSpec as ModelSpec
from frostline.models.spec import SourceName, WeightsChoice, file_and_place
from frostline.models.state_files import read_state_dict as read_state_dict
from frostline.models.state_files import read_tensors
from frostline.models.timm_source import build_timm
from frostline.models.torchvision_source import build_torchvision
from frostline.models.weights import WeightsReport as WeightsReport
from frostline.models.weights import load_weights as load_weights


def load_model(
    model: str,
    *,
    weights: str,
    classes: int,
    hidden: Sequence[int] = (),
    on: HeadPlace = "classifier",
    seed: int | None = 0,
    dropout: float | None = None,
    dtype: FloatName | None = None,
    tokens: bool = False,
    clamped: bool = True,
) -> LoadedModel:
    """Build a model, load its weights and give it a head for `classes` classes.

    Weights from a file must fit name for name, except under the classifier that `on="classifier"`
    replaces: there the file may lack tensors or have another number of classes. A classifier of
    torchvision's or timm's that stays gets as many outputs as the file has for it.

    Args:
        model: `alexnet`, `torchvision:NAME`, `timm:NAME`, `hf:FOLDER`, `hf:NAME` or
            `path/to/file.py:function`.
        weights: `DEFAULT`, `none`, a file, `FILE:PLACE` where it holds several networks that fit,
            or the name of torchvision's entry.
        hidden, on, dropout, clamped: as for `put_head`.
        seed: of every random value; None draws from torch's generator.
        dtype: of all weights; by default as the source has them, as its checkpoint of `hf:`.
        tokens: logits for each token of a text, as models of `hf:` can give them.

    Raises:
        ConfigError: a width or `on` is out of range; found before anything is built.
        ModelError: the model cannot be found or built, or the head cannot be put.
        WeightsError: the weights cannot be had, read or fitted.
    """
    spec = ModelSpec.parse(model)
    check_head(classes=classes, hidden=hidden, on=on)
    built = build(spec, weights=weights, seed=seed, replaced=on == "classifier", tokens=tokens)
    headed = put_head(
        built.model,
        classes=classes,
        hidden=hidden,
        on=on,
        seed=seed,
        dropout=dropout,
        clamped=clamped,
    )
    if dtype is not None:
        headed.model.to(getattr(torch, dtype))
    return replace(built, model=headed.model, head=headed.head)


def build(
    spec: ModelSpec,
    *,
    weights: str,
    seed: int | None = None,
    replaced: bool = False,
    tokens: bool = False,
) -> LoadedModel:
    """Build a model as its source makes it, with its weights and its preprocessing.

    Args:
        weights: `DEFAULT`, the name of an entry such as `IMAGENET1K_V1` (torchvision), `none`, or
            a file, which must fit name for name, behind one prefix at most; see `load_model`.
        seed: random values depend on it alone and torch's generator is left as it was; None
            draws from that generator.
        replaced: the classifier is going to be; a file need not fit there.
        tokens: as for `load_model`.

    Raises:
        ModelError: there is no such model, or it cannot be built.
        WeightsError: the weights cannot be had, read or fitted.
    """
    choice = WeightsChoice.parse(weights)
    is_file = choice.kind == "file"
    source = partial(build_hf, tokens=True) if tokens else _SOURCES[spec.source]
    if tokens and spec.source != "hf":
        raise ModelError(f"{spec} gives no logits for tokens. Use a model of texts: hf:FOLDER.")
    with seeded(seed):
        built = source(spec, WeightsChoice("none", "none") if is_file else choice)
    if lazy := [name for name, p in built.model.named_parameters() if is_lazy(p)]:
        raise ModelError(
            f"{spec}: {lazy[0]} has no shape yet: a lazy module gets it in its first call. Let the "
            "function call the model on an example before it returns it."
        )
    if not is_file:
        return built
    file, place = file_and_place(choice.name)
    tensors = read_tensors(file)
    if isinstance(built.model, Pooled):
        report = load_weights(built.model.backbone, file, within=place, tensors=tensors)
        return replace(built, weights=report)
    if not replaced and spec.source != "file":
        with seeded(seed):
            _take_width(built, tensors, file.name, place)
    paths = find_classifier(built.model) if replaced else ()
    report = load_weights(
        built.model, file, replaced=paths, removed=built.removed, within=place, tensors=tensors
    )
    return replace(built, weights=report)


def _take_width(built: LoadedModel, tensors: Mapping[str, Tensor], file: str, place: str) -> None:
    """Give the classifier as many outputs as the file has for it, where all else fits."""
    try:
        path = find_classifier(built.model)[0]
    except ModelError:
        return
    match = find_match(
        tensors,
        built.model.state_dict(),
        excused=(path, *built.removed),
        within=place,
        file=file,
    )
    stored = match.found.get(f"{path}.weight")
    layer = logit_layer(built.model, path)
    if match.misfits or stored is None or stored.shape[1:] != layer.weight.shape[1:]:
        return  # loading says what does not fit
    if len(stored) != len(layer.weight):
        replace_classifier(built.model, classes=len(stored), path=path)


_SOURCES: dict[SourceName, Source] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
    "hf": build_hf,
    "file": build_from_file,
}
