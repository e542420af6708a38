"""One door to every source of models."""

from __future__ import annotations

from dataclasses import replace

from frostline.errors import ModelError
from frostline.models._built import Built, Source
from frostline.models._seeds import seeded
from frostline.models.file_source import build_from_file
from frostline.models.spec import ModelSpec, SourceName, WeightsChoice
from frostline.models.timm_source import build_timm
from frostline.models.torchvision_source import build_torchvision
from frostline.models.weights import load_weights

__all__ = ["Built", "Source", "build"]


def build(spec: ModelSpec, *, weights: str, seed: int | None = None) -> Built:
    """Build a model as its source makes it, with its weights and its preprocessing.

    Args:
        weights: `DEFAULT`, the name of an entry such as `IMAGENET1K_V1` (torchvision), `none`, or
            a file, which must fit name for name.
        seed: random values depend on it alone and torch's generator is left as it was; None
            draws from that generator.

    Raises:
        ModelError: there is no such model, or it cannot be built.
        WeightsError: the weights cannot be had, read or fitted.
    """
    choice = WeightsChoice.parse(weights)
    if choice.kind == "file":
        bare = _build(spec, WeightsChoice("none", "none"), seed=seed)
        report = load_weights(bare.model, choice.path, removed=bare.removed)
        return replace(bare, weights=report)
    return _build(spec, choice, seed=seed)


def _build(spec: ModelSpec, weights: WeightsChoice, *, seed: int | None) -> Built:
    with seeded(seed):
        return _SOURCES[spec.source](spec, weights)


def _not_yet(spec: ModelSpec, weights: WeightsChoice) -> Built:  # noqa: ARG001 - a Source
    raise ModelError(
        f"{spec}: hf: models are not available yet; write a function and name it file.py:function."
    )


_SOURCES: dict[SourceName, Source] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
    "hf": _not_yet,
    "file": build_from_file,
}
