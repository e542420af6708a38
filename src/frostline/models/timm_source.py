"""timm's models, with its weights and their preprocessing."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from contextlib import nullcontext, suppress
from typing import Any

from torch import nn

from frostline.errors import ModelError, WeightsError, nearest, one_line
from frostline.models._built import LoadedModel
from frostline.models.downloads import downloading
from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.transforms import from_timm
from frostline.models.weights import WeightsReport
from frostline.wording import option

HUB_TIMEOUT_SECONDS = 5.0


def build_timm(spec: ModelSpec, weights: WeightsChoice) -> LoadedModel:
    """Any model that timm lists, by its name or `NAME.TAG`; see `Source`."""
    if importlib.util.find_spec("timm") is None:
        raise ModelError(
            f'{spec} needs the package timm, which is not installed: pip install "frostline[timm]".'
        )
    _check_name(spec.name)
    published = weights.kind == "published"
    if published and weights.name != "DEFAULT":
        raise WeightsError(
            f"{spec} has no weights {weights.name!r}: timm names weights by a tag of the model. "
            f"Use timm:{spec.name.partition('.')[0]}.{weights.name} with "
            f"{option('weights', 'DEFAULT')} if that is one; otherwise DEFAULT, none or a file."
        )
    model = _published(spec) if published else _create(spec, pretrained=False)
    preprocessing = from_timm(_timm().data.resolve_model_data_config(model))
    if not published:
        return LoadedModel(model, preprocessing, WeightsReport.none(), spec)
    config: Any = model.pretrained_cfg
    tag = config.get("tag")
    name = f"{config.get('architecture', spec.name)}.{tag}" if tag else spec.name
    report = WeightsReport(source=f"timm {name}", loaded=len(model.state_dict()))
    return LoadedModel(model, preprocessing, report, spec, _classes(model))


def _timm() -> Any:
    """The package, imported when it is needed; Any, because its types come and go by version."""
    return importlib.import_module("timm")


def _check_name(name: str) -> None:
    timm = _timm()
    names = [*timm.list_models(), *timm.list_models(include_tags=True)]
    if name in names:
        return
    renamed = timm.models.get_deprecated_models().get(name)
    if renamed:
        raise ModelError(f"timm has renamed {name!r}: use timm:{renamed}.")
    raise ModelError(
        f"timm has no model {name!r}. Nearest: {', '.join(nearest(name, names))}. "
        "timm.list_models() lists all."
    )


def _create(spec: ModelSpec, *, pretrained: bool, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        # About timm's own insides: nobody who reads them here could act on them.
        warnings.simplefilter("ignore")
        try:
            model: nn.Module = _timm().create_model(spec.name, pretrained=pretrained, **options)
        except Exception as error:
            if pretrained:
                raise
            raise ModelError(
                f"timm cannot build {spec.name}: {one_line(error)}. "
                "Update timm, install what it asks for, or choose another model."
            ) from error
    return model


def _published(spec: ModelSpec) -> nn.Module:
    timm = _timm()
    config = timm.models.get_pretrained_cfg(spec.name)
    if config is None or not config.has_weights:
        tagged = timm.list_pretrained(f"{spec.name.partition('.')[0]}.*")
        others = f" It has some for timm:{', timm:'.join(tagged[:5])}." if tagged else ""
        raise WeightsError(
            f"timm publishes no weights for {spec.name}.{others} "
            f"Give weights you have with {option('weights', 'FILE')}, or use "
            f"{option('weights', 'none')}."
        )
    hub = config.hf_hub_id
    with downloading(
        f"weights DEFAULT of {spec} from {f'hub repository {hub}' if hub else config.url}"
    ):
        if not hub:
            return _create(spec, pretrained=True)
        # timm's own download retries for 46 s without a network, also when the file is in the
        # cache; so the file is fetched here and timm reads it (timm 1.0.31, huggingface_hub 2.4).
        overlay = {"file": _hub_file(config), "custom_load": False}
        model = _create(spec, pretrained=True, pretrained_cfg_overlay=overlay)
    config_of_model: Any = model.pretrained_cfg
    config_of_model.pop("file", None)
    return model


def _hub_file(config: Any) -> str:
    """The path of the weights in the hub's cache, fetched if need be.

    Raises:
        Exception: whatever the hub's HTTP library raises; the hub itself is tried once.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, tag = config.hf_hub_id.partition("@")
    revision = tag or None
    given = config.hf_hub_filename
    names = (given,) if given else ("model.safetensors", "pytorch_model.bin")
    for name in names:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return cached

    for name in names:
        # Asked directly, the hub's client does not retry.
        url = hf_hub_url(repository, name, revision=revision)
        with suppress(EntryNotFoundError) if name != names[-1] else nullcontext():
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS)
            break
    return str(hf_hub_download(repository, name, revision=revision))


def _classes(model: nn.Module) -> tuple[str, ...] | None:
    """Class names where timm knows them for as many logits as the model has."""
    data = _timm().data
    config: Any = model.pretrained_cfg
    names = config.get("label_names")
    subset = None if names else data.infer_imagenet_subset(model)
    if subset:
        names = data.ImageNetInfo(subset).label_descriptions()
    return tuple(names) if names and len(names) == config.get("num_classes") else None
