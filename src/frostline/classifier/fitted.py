"""What a classifier learnt: trained on stored features beside a shared base, or a whole network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final

from torch import Tensor, nn

from frostline.classifier.bases import Base, BaseSpec, base_of
from frostline.classifier.inputs import FeatureRows, Given
from frostline.config import RunSettings
from frostline.cutting.standalone import Standalone
from frostline.data import Samples, make_batches
from frostline.deltas import delta_content, put_tensors
from frostline.devices import Compute
from frostline.engine import predict
from frostline.errors import DriftError
from frostline.fitting import Run, fit
from frostline.freezing import Proof
from frostline.models import LoadedModel
from frostline.tasks import Classification

Parts = tuple[Sequence[int], Sequence[int]]
"""Places of the samples to train on and to validate on."""

_OTHER_BASE = (
    "the frozen part of this classifier is not what it was fitted on: its weights, its network or "
    "the versions of libraries are others now. Restore them, or fit again."
)


class Fitted(Protocol):
    """What predicts.

    Attributes:
        spec: what it was made of.
        run: how it was trained.
    """

    spec: BaseSpec
    run: Run

    def logits(self, given: Given) -> Tensor:
        """Of each sample, float32 `(samples, classes)`, on the CPU."""
        ...

    def whole(self) -> tuple[LoadedModel, Proof]:
        """A copy of the network with what was trained, and the proof of its frozen part.

        Raises:
            DriftError: the frozen part is not what it was.
        """
        ...


@final
@dataclass
class OnFeatures:
    """A trained copy of what lies above the frost line; the base is shared, or made again.

    Attributes:
        key: what the base's frozen side computes and on which tensors, as hashes.
        frozen: content hash of all that is frozen.
    """

    spec: BaseSpec
    rest: Standalone
    key: dict[str, str]
    frozen: str
    run: Run
    _base: Base | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_base": None}  # however much it weighs, its spec makes it again

    def logits(self, given: Given) -> Tensor:
        settings = self.spec.settings
        if self._base is None:
            base = base_of(self.spec, given)
            if dict(base.cut.key) != self.key:
                raise DriftError(_OTHER_BASE)
            self._base = base
        data = self._base.extracted(given.samples(self._base.prepare), settings)
        rows = FeatureRows(data, range(len(data)), settings.data.classes)
        return _logits(self.rest, rows, settings)

    def whole(self) -> tuple[LoadedModel, Proof]:
        loaded, frozen = self.spec.built()
        if str(frozen.fingerprint) != self.frozen:
            raise DriftError(_OTHER_BASE)
        put_tensors(loaded.model, delta_content(self.rest.model))
        return replace(loaded, model=loaded.model.eval()), frozen.verify()


@final
@dataclass
class Whole:
    """A network that was trained as a whole, as by a plan or where no line can be drawn."""

    spec: BaseSpec
    loaded: LoadedModel
    run: Run

    def logits(self, given: Given) -> Tensor:
        samples = given.samples(self.spec.prepare(self.loaded))
        return _logits(self.loaded.model, samples, self.spec.settings)

    def whole(self) -> tuple[LoadedModel, Proof]:
        return copy.deepcopy(self.loaded), self.run.proof


def fit_on_features(spec: BaseSpec, given: Given, parts: Parts) -> OnFeatures:
    """Train above the frost line, on features that are computed once for all who ask.

    Raises:
        CutError: there is no such line.
        FrostlineError: as `fl.fit`.
    """
    settings, base = spec.settings, base_of(spec, given)
    data = base.extracted(given.samples(base.prepare), settings)
    train, val = (FeatureRows(data, part, settings.data.classes) for part in parts)
    rest, recipe = base.start.copied(), settings.training
    if recipe.lr is None:  # by the stages of the network, which the rest has not
        recipe = recipe.model_copy(update={"lr": base.lr(recipe.optimizer)})
    run = fit(
        rest,
        train,
        val,
        task=Classification(settings.data.classes),
        recipe=recipe,
        batch_size=settings.data.batch_size,
        device=settings.device,
        features="off",
        hooks=(),
    )
    return OnFeatures(spec, rest, dict(base.cut.key), str(base.frozen.fingerprint), run, base)


def fit_whole(spec: BaseSpec, given: Given, parts: Parts) -> Whole:
    """Train the network by `fl.fit`, with its plan.

    Raises:
        FrostlineError: as `fl.fit`.
    """
    settings = spec.settings
    loaded, _ = spec.built()
    train, val = (given.samples(spec.prepare(loaded), part) for part in parts)
    task = Classification(settings.data.classes)
    run = fit(loaded.model, train, val, task=task, settings=settings, hooks=())
    return Whole(spec, replace(loaded, model=loaded.model.eval()), run)


def _logits(model: nn.Module, samples: Samples, settings: RunSettings) -> Tensor:
    batches = make_batches(samples, batch_size=settings.data.batch_size, shuffle=False, seed=0)
    compute = Compute(settings.device, settings.training.mixed)
    outputs: Tensor = predict(model.to(compute.device), batches, compute).outputs
    return outputs
