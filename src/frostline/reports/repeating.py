"""From a run's settings back to what was typed: to train it again, and to use what it trained."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from frostline.config import DataSettings, FeatureSettings, FreezeSettings, RunSettings
from frostline.recipe import Recipe
from frostline.records import RunFolder

_DATA = ("val_fraction", "folds", "fold", "bad_images", "augment", "batch_size")
_NO_OPTION = {"epochs"}  # beside a plan, whose phases have their own


def repeat_command(settings: RunSettings, folder: RunFolder) -> str:
    """`frostline train ...` that trains this run again; empty where only Python can.

    Paths are absolute, so that it can be given anywhere; `--out` is a folder beside the run's.
    """
    if settings.model.is_from_python or not settings.data.path:
        return ""
    root = folder.root.resolve()
    words = ["frostline", "train", settings.data.path, *_options(settings, folder)]
    words += ["--out", str(root.with_name(f"{root.name}-again"))]
    return _wrapped(words)


def repeat_notes(settings: RunSettings, folder: RunFolder) -> tuple[str, ...]:
    """What the command line cannot say."""
    notes = []
    if settings.model.is_from_python:
        options = ", ".join(
            f"{name}={value!r}" for name, value in _changed(settings.training, Recipe())
        )
        forms = f", forms={list(settings.features.forms)}" if settings.features.forms else ""
        plan = f", plan=fl.Plan.load({str(folder.plan.resolve())!r})" if settings.plan else ""
        further = f"{f', {options}' if options else ''}{forms}{plan}"
        notes.append(
            f"The model was handed over in Python ({settings.model.name}), so it is repeated "
            "there, with the same model and data: fl.fit(model, train, val, "
            f"batch_size={settings.data.batch_size}{further})."
        )
    elif settings.plan and not folder.plan.exists():
        notes.append(
            f"Its plan is in {folder.settings}; copy the [[plan]] tables, as [[phase]], into the "
            "file that --plan names."
        )
    if settings.features.budget_bytes:
        notes.append(f"The feature store was held to {settings.features.budget_bytes:,} bytes.")
    if not settings.model.is_from_python:
        notes.append(
            "On the same machine, with the same versions and number of threads, it gives the same "
            "bits."
        )
    return tuple(notes)


def use_command(settings: RunSettings, folder: RunFolder) -> str:
    """`frostline predict`; empty where only Python can build the model."""
    if settings.model.is_from_python:
        return ""
    return f"frostline predict {shlex.quote(str(folder.root.resolve()))} FILE..."


def use_python(settings: RunSettings, folder: RunFolder) -> str:
    """Python lines that predict with what was trained."""
    root = folder.root.resolve()
    if settings.model.is_from_python:
        return (
            "import frostline as fl\n\n"
            "model = ...  # built as it was before the run\n"
            f"fl.load_delta(model, {str(root / 'best' / 'delta.safetensors')!r})\n"
            "model.eval()"
        )
    return (
        "from pathlib import Path\n\n"
        "import frostline as fl\n\n"
        f"run = fl.open_run({str(root)!r})\n"
        'for found in run.predict([Path("photo.jpg")]):\n'
        "    print(found.file, found.classes)\n"
        "model = run.loaded.model  # the network itself, with the trained weights, in eval mode"
    )


def _options(settings: RunSettings, folder: RunFolder) -> Iterator[str]:
    model = settings.model
    yield from ("--model", model.name)
    yield from ("--weights", model.weights)
    if model.on != "classifier":
        yield from ("--on", model.on)
    if model.hidden:
        yield from ("--head", ",".join(map(str, model.hidden)))
    if settings.plan:
        yield from ("--plan", str(folder.plan.resolve()))
    for name, value in _changed(settings.freeze, FreezeSettings()):
        yield from _option(name, value)
    for name, value in _changed(settings.data, DataSettings()):
        if name in _DATA:
            yield from _option(name, value)
    for name, value in _changed(settings.training, Recipe()):
        if not (settings.plan and name in _NO_OPTION):
            yield from _option(name, value)
    yield from _feature_options(settings.features)
    if settings.device != "auto":
        yield from ("--device", settings.device)


def _feature_options(features: FeatureSettings) -> Iterator[str]:
    usual = FeatureSettings()
    if features.store != usual.store:
        yield from ("--features", features.store)
    if features.storage != usual.storage:
        yield from ("--storage", features.storage)
    for form in features.forms:
        yield from ("--form", form)
    if features.compile:
        yield "--compile"


def _option(name: str, value: object) -> tuple[str, ...]:
    flag = f"--{name.replace('_', '-')}"
    return (flag,) if value is True else (flag, str(value))


def _changed(
    given: FreezeSettings | DataSettings | Recipe, usual: FreezeSettings | DataSettings | Recipe
) -> Iterator[tuple[str, object]]:
    """What differs from the defaults, in the fields' order."""
    for name in type(given).model_fields:
        value = given.__dict__[name]
        if value != usual.__dict__[name]:
            yield name, value


def _wrapped(words: list[str]) -> str:
    """The command over several lines, an option to a line, as a shell reads it."""
    lines: list[str] = []
    for word in words:
        quoted = shlex.quote(word)
        if word.startswith("--") or not lines:
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return " \\\n  ".join(lines)
