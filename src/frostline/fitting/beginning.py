"""What a run begins from: settings, checked and written down, or held against those of before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from torch import nn

from frostline.config import DataSettings, FeatureSettings, ModelSettings, RunSettings
from frostline.devices import resolve_device
from frostline.errors import ConfigError, DriftError
from frostline.plans import Phase
from frostline.recipe import Recipe, config_errors
from frostline.records import RunFolder
from frostline.session import Survey, check_forms


@final
class Book:
    """The settings of a run as they lie in its folder, with the forms of its phases."""

    def __init__(self, folder: RunFolder | None, settings: RunSettings) -> None:
        self._folder = folder
        self.settings = settings

    def form(self, phase: int) -> str:
        """How the frozen part was computed in that phase when it began; empty before that."""
        return dict(enumerate(self.settings.features.forms)).get(phase, "")

    def record_form(self, phase: int, form: str) -> None:
        """Write down how the frozen part is computed in a phase that begins."""
        forms = (*self.settings.features.forms[:phase], form)
        features = self.settings.features.model_copy(update={"forms": forms})
        self.settings = self.settings.model_copy(update={"features": features})
        self.write()

    def write(self) -> None:
        if self._folder is not None:
            self.settings.write(self._folder.settings)


def settings_from_python(
    model: nn.Module,
    recipe: Recipe,
    batch_size: int,
    device: str,
    features: str | Path,
    forms: Sequence[str],
    compile_suffix: bool,
) -> RunSettings:
    """The settings of a run whose model was handed over as an object.

    Raises:
        ConfigError: a form cannot be read.
    """
    with config_errors():
        given = (forms,) if isinstance(forms, str) else tuple(forms)
        kept = FeatureSettings(store=str(features), compile=compile_suffix, forms=given)
    return RunSettings(
        model=ModelSettings.from_python(type(model).__name__),
        data=DataSettings(batch_size=batch_size),
        training=recipe,
        features=kept,
        device=device,
    )


def check_settings(settings: RunSettings, phases: int) -> None:
    """Refuse what would not be heeded, or only after hours.

    Raises:
        ConfigError: there is no such device, forms do not fit the phases or the precision, or
            there is no compiler.
    """
    resolve_device(settings.device)
    features, precision = settings.features, settings.training.prefix_precision
    check_forms(features.forms, phases, features=features.store, precision=precision)
    if settings.features.compile:
        _check_compiler(settings.device)


def _check_compiler(device: str) -> None:
    """Refuse at once what torch.compile would refuse after the features were computed."""
    known = ("g++", "clang++", "c++")
    there = "CXX" in os.environ or any(map(shutil.which, known))
    if resolve_device(device).type == "cpu" and not there:
        raise ConfigError(
            "torch.compile needs a C++ compiler on a CPU, and none of "
            f"{', '.join(known)} is there. Install g++, or leave --compile out."
        )


def about(settings: RunSettings) -> dict[str, str]:
    """What a delta says about how to get its base, and about the plan that it belongs to."""
    model = settings.model
    notes = {"model": model.name, "weights": model.weights}
    if settings.data.classes:
        notes["classes"] = json.dumps(settings.data.classes)
    if not model.is_from_python:
        notes["head"] = json.dumps({"on": model.on, "hidden": model.hidden, "at": model.head})
        notes["weights_digest"] = model.weights_digest
    if plan := settings.as_plan():
        notes["plan"] = plan.dumps()
    return notes


@contextmanager
def run_folder(out: str | Path | None, *, resume: bool) -> Iterator[RunFolder | None]:
    """The folder of a run, locked while it goes; None where nothing is kept.

    Raises:
        ConfigError: a run is to be resumed, and none is there.
        OutputError: a run is going there, or something lies there already.
    """
    if out is None:
        if resume:
            raise ConfigError("resume needs the run's folder. Give it as out=...")
        yield None
        return
    folder = RunFolder(Path(out))
    folder.check_idle()
    _check_place(folder, resume=resume)
    with folder.locked():
        _check_place(folder, resume=resume)  # another run may have come and gone meanwhile
        folder.sweep()
        try:
            yield folder
        except Exception:
            if not resume:
                folder.discard_start()
            raise


def _check_place(folder: RunFolder, *, resume: bool) -> None:
    if resume:
        folder.check_is_run()
    else:
        folder.check_free()


def begun(
    folder: RunFolder | None, settings: RunSettings, planned: Survey, *, resume: bool
) -> Book:
    """Write down settings and frozen part; or make sure that a resumed run has the same.

    Raises:
        ConfigError, DriftError: it has others.
    """
    if folder is None or not resume:
        book = Book(folder, settings)
        if folder is not None:
            book.write()
            folder.write_frozen(planned.untouched)
            if plan := settings.as_plan():
                plan.save(folder.plan)
        return book
    stored = RunSettings.read(folder.settings)
    check_same_settings(stored, settings)
    if not folder.frozen.exists() and not folder.has_trained:  # killed between the two files
        folder.write_frozen(planned.untouched)
    before, found = folder.read_frozen(), planned.untouched
    if before != found:
        moved = [n for n, d in before.tensors.items() if found.tensors.get(n) != d]
        raise DriftError(
            f"cannot resume: the frozen part is not what {folder.root} started with; "
            f"{len(moved)} tensors differ, first {', '.join(moved[:3]) or 'in what is frozen'}. "
            "Give the same weights, model and selector."
        )
    return Book(folder, stored)


def check_same_settings(stored: RunSettings, given: RunSettings) -> None:
    """Make sure a resumed run is the same run; the device and Frostline's version may differ.

    Raises:
        ConfigError: names each setting that differs.
    """
    differing = [
        f"{section}.{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for section, (old, new) in _sections(stored, given).items()
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if stored.plan != given.plan:
        differing.append(f"the plan was {_short(stored.plan)} and is {_short(given.plan)}")
    if differing:
        raise ConfigError(
            f"cannot resume with other settings: {'; '.join(differing)}. Leave them as they were, "
            "or start a new run with another --out."
        )


def _sections(a: RunSettings, b: RunSettings) -> dict[str, tuple[dict[str, object], ...]]:
    one, other = a.model_dump(), b.model_dump()
    one["training"]["keep"] = other["training"]["keep"]  # no matter how many were kept before
    return {key: (one[key], other[key]) for key in ("model", "data", "freeze", "training")}


def _short(phases: Sequence[Phase]) -> str:
    return f"fl.Plan({list(phases)})" if phases else "none"
