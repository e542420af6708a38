"""The base of a classifier: a network frozen as asked, built and cut once in a process.

A search makes hundreds of estimators that share their frozen part. None of them trains the base:
each trains a copy of what lies above the frost line, so the base stays what it was and serves all.
"""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
import xxhash
from torch import nn

from frostline.calling import in_turn
from frostline.classifier.inputs import Given, Prepare
from frostline.config import RunSettings
from frostline.cutting import Cut, cut
from frostline.cutting.standalone import Standalone
from frostline.data import ImageSamples, Samples, first_batch
from frostline.devices import device_of, resolve_device, to_device
from frostline.features import (
    Computing,
    Decisions,
    FeatureData,
    computing,
    extract,
    with_decoding,
)
from frostline.fingerprints import fingerprint
from frostline.freezing import Frozen
from frostline.freezing.modes import is_held
from frostline.groups import default_lr
from frostline.models import LoadedModel, ModelSpec, WeightsReport, put_head
from frostline.models.spec import file_and_place
from frostline.preprocessing import Preprocessing
from frostline.runs.preparing import build, frozen_as_asked
from frostline.session import default_store
from frostline.session.pipelines import DEFAULT_BUDGET_BYTES, TRIED_SAMPLES
from frostline.store import FeatureStore
from frostline.tasks import Classification

_KEPT = 4  # bases, each with a network in memory
_CUT_ON = 4  # samples
_TENSORS_AND_PARTS = frozenset({"_parameters", "_buffers", "_modules"})
_KNOWN: OrderedDict[str, Base] = OrderedDict()


@final
@dataclass(frozen=True, slots=True)
class BaseSpec:
    """What a base is made of.

    Attributes:
        settings: names the network, its head, what is frozen, the seed and the device.
        module: a network that was handed over, where the settings name none.
        preprocessing: of that network, if it takes pictures.
    """

    settings: RunSettings
    module: nn.Module | None = None
    preprocessing: Preprocessing | None = None

    @property
    def key(self) -> str:
        """Equal where the bases are; empty where that cannot be told."""
        settings = self.settings
        text = [repr(part) for part in (settings.model, settings.freeze, settings.plan)]
        text += [str(settings.training.seed), settings.device, repr(settings.data.classes)]
        text += [repr(self.preprocessing), *_stamps(settings)]
        try:
            text += [] if self.module is None else _content(self.module)
        except Exception:  # whatever attributes raise that cannot be pickled
            return ""
        return xxhash.xxh3_128_hexdigest("\0".join(text).encode())

    def built(self) -> tuple[LoadedModel, Frozen]:
        """The network on its device, with a new head, frozen as asked.

        Raises:
            ModelError, WeightsError, SelectorError, FreezeError, ConfigError: as `runs.build`.
        """
        settings = self.settings
        task = Classification(settings.data.classes)
        if self.module is None:
            loaded, frozen = build(settings, task)
        else:
            loaded = self._headed(copy.deepcopy(self.module), task.width)
            frozen = frozen_as_asked(loaded, settings)
        loaded.model.to(resolve_device(settings.device))
        return loaded, frozen

    def prepare(self, loaded: LoadedModel) -> Prepare:
        """What makes the network's input; None where rows go to it as they are."""
        return loaded.preprocessing if self.module is None else self.preprocessing

    def _headed(self, model: nn.Module, classes: int) -> LoadedModel:
        asked, seed = self.settings.model, self.settings.training.seed
        headed = put_head(model, classes=classes, hidden=asked.hidden, on=asked.on, seed=seed)
        spec = ModelSpec("file", type(model).__name__, "python")
        prepared = self.preprocessing or Preprocessing()
        return LoadedModel(headed.model, prepared, WeightsReport.none(), spec, head=headed.head)


@final
@dataclass(frozen=True)
class Base:
    """A network that is frozen as asked and never trained itself.

    Attributes:
        cut: along its frost line.
        start: what lies above the line, as every training begins with it.
    """

    loaded: LoadedModel
    frozen: Frozen
    prepare: Prepare
    cut: Cut
    start: Standalone
    _computing: dict[tuple[object, ...], Computing] = field(default_factory=dict)
    _digests: dict[Path, tuple[object, str]] = field(default_factory=dict)

    def extracted(self, samples: Samples, settings: RunSettings) -> FeatureData:
        """The features of samples, from the store as far as they are there.

        Raises:
            FrostlineError: as `fl.extract`.
        """
        if isinstance(samples, ImageSamples):  # of a search the same files come for every fit
            samples.digests = self._digests
        asked = settings.features.store
        where = default_store() if asked == "auto" else asked
        store = FeatureStore(where, budget_bytes=DEFAULT_BUDGET_BYTES)
        size, precision = settings.data.batch_size, settings.training.prefix_precision
        # Looking the graph over again would take longer than a fit on stored features.
        known = (store.where, precision, size, torch.get_num_threads())
        if known not in self._computing:
            found = computing(
                self.cut,
                lambda: first_batch(samples, TRIED_SAMPLES).inputs,
                precision=precision,
                batch_size=size,
                device=device_of(self.loaded.model),
                planned_samples=len(samples),
                decisions=Decisions(store.root),
            )
            self._computing[known] = with_decoding(
                found,
                samples,
                precision=precision,
                planned_samples=len(samples),
                decisions=Decisions(store.root),
            )
        return extract(self.cut, samples, store, compute=self._computing[known])

    def lr(self, optimizer: str) -> float:
        """The learning rate where none is given, as `fl.fit` has it."""
        return default_lr(self.loaded.model, optimizer=optimizer)


@in_turn
def base_of(spec: BaseSpec, given: Given) -> Base:
    """The base of these settings, from before where this process made it already.

    Args:
        given: some of it is cut on where the base is new.

    Raises:
        CutError: it has no frost line, or none that can be found.
        ModelError, WeightsError, SelectorError, FreezeError, ConfigError: as `BaseSpec.built`.
    """
    key = spec.key and f"{spec.key} {given.form}"
    base = _KNOWN.pop(key, None) or _made(spec, given)
    if key:
        _KNOWN[key] = base  # the latest last
    while len(_KNOWN) > _KEPT:
        _KNOWN.popitem(last=False)
    return base


def _made(spec: BaseSpec, given: Given) -> Base:
    loaded, frozen = spec.built()
    prepare = spec.prepare(loaded)
    few = first_batch(given.samples(prepare, range(min(_CUT_ON, len(given)))), _CUT_ON).inputs
    made = cut(loaded.model, to_device(few, resolve_device(spec.settings.device)))
    return Base(loaded, frozen, prepare, made, made.suffix.alone())


def _content(model: nn.Module) -> list[str]:
    """Of a module: its tensors, and what else each of its parts holds; the same of a copy."""
    found = [str(fingerprint(model))]
    for path, module in model.named_modules(remove_duplicate=False):
        frozen = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        found.append(f"{path} {type(module)} {is_held(module)} {frozen}")
        for name, value in sorted(vars(module).items()):
            if name not in _TENSORS_AND_PARTS:  # a held module's `train` refers to the module
                content = b"" if name == "train" else pickle.dumps(value)
                found.append(f"{name} {xxhash.xxh3_128_hexdigest(content)}")
    return found


def _stamps(settings: RunSettings) -> list[str]:
    """Of the files that a base is read from: whether they were written since."""
    weights, _ = file_and_place(settings.model.weights)
    files: list[Path] = [weights]
    if settings.model.name and not settings.model.is_from_python:
        spec = ModelSpec.parse(settings.model.name)
        folder = Path(spec.path or spec.name).expanduser()
        files += [folder, *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:
        return "none"
    return f"{file} {found.st_mtime_ns} {found.st_size} {found.st_ino}"
