"""From a run's settings back to what was typed: to train it again, and to use what it trained."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pydantic import BaseModel

from frostline.config import OPTION_OF, RunSettings
from frostline.records import RunFolder
from frostline.tasks import TaskSettings

_NO_OPTION = {"path", "is_text", "black_and_white", "classes", "levels", "budget_bytes"}


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
        further = [f"{name}={value!r}" for name, value in _changed(settings.training)]
        if settings.features.forms:
            further.append(f"forms={list(settings.features.forms)}")
        if settings.plan:
            further.append(f"plan=fl.Plan.load({str(folder.plan.resolve())!r})")
        notes.append(
            f"The model was handed over in Python ({settings.model.name}), so it is repeated "
            "there, with the same model and data: fl.fit(model, train, val, "
            f"{', '.join([f'batch_size={settings.data.batch_size}', *further])})."
        )
    elif settings.plan and not folder.plan.exists():
        notes.append(
            f"Its plan is in {folder.settings}; copy the [[plan]] tables, as [[phase]], into the "
            "file that --plan names."
        )
    if settings.features.budget_bytes:
        notes.append(f"The feature store was held to {settings.features.budget_bytes:,} bytes.")
    if settings.model.start:
        notes.append(
            f"It began with the best weights of {settings.model.start} as they were then; "
            f"{folder.start.name} in its folder keeps them."
        )
    if settings.length_changes:
        notes.append(
            "Its number of epochs was changed while it ran "
            f"({', '.join(settings.length_changes)}), and learning rates with it, so a run from "
            "the start gives other numbers."
        )
    elif not settings.model.is_from_python:
        notes.append(
            "On the same machine, with the same versions and number of threads, it gives the same "
            "bits."
        )
    return tuple(notes)


def use_command(settings: RunSettings, folder: RunFolder) -> str:
    """`frostline predict`; empty where only Python can build the model."""
    if settings.model.is_from_python:
        return ""
    what = "TEXT..." if settings.data.is_text else "FILE..."
    return f"frostline predict {shlex.quote(str(folder.root.resolve()))} {what}"


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
    shown = "found.file, found.classes" if settings.data.classes else "found.file, found.answer"
    one = '"a text"' if settings.data.is_text else 'Path("photo.jpg")'
    return (
        ("" if settings.data.is_text else "from pathlib import Path\n\n")
        + "import frostline as fl\n\n"
        f"run = fl.open_run({str(root)!r})\n"
        f"for found in run.predict([{one}]):\n"
        f"    print({shown})\n"
        "model = run.loaded.model  # the network itself, with the trained weights, in eval mode"
    )


def _options(settings: RunSettings, folder: RunFolder) -> Iterator[str]:
    model = settings.model
    if model.start:
        yield from ("--from", model.start, "--weights", model.weights)
    else:
        yield from ("--model", model.name, "--weights", model.weights)
        if model.on != "classifier":
            yield from ("--on", model.on)
        if model.hidden:
            yield from ("--head", ",".join(map(str, model.hidden)))
        if model.dropout is not None:
            yield from ("--dropout", str(model.dropout))
    if settings.task is not None and not model.start:
        yield from _of_task(settings.task)
    if settings.plan:
        yield from ("--plan", str(folder.plan.resolve()))
    no_option = _NO_OPTION | ({"epochs"} if settings.plan else set())  # its phases have their own
    for section in (settings.freeze, settings.data, settings.training, settings.features):
        # What is not given would be that of the run it began with, not the default.
        for name, value in _given(section) if model.start else _changed(section):
            if name not in no_option:
                for one in value if isinstance(value, tuple) else (value,):
                    yield from _option(OPTION_OF.get(name, name), one)
    if settings.device != "auto":
        yield from ("--device", settings.device)


def _of_task(task: TaskSettings) -> Iterator[str]:
    yield from ("--task", task.kind)
    if task.loss:
        yield from ("--loss", task.loss)
    if task.chosen:
        yield from ("--thresholds", "best")
    elif set(task.thresholds) - {0.5}:
        yield from ("--thresholds", str(task.thresholds[0]))


def _option(name: str, value: object) -> tuple[str, ...]:
    flag = f"--{name.replace('_', '-')}"
    return (flag,) if value is True else (flag, str(value))


def _changed(section: BaseModel) -> Iterator[tuple[str, object]]:
    """What differs from the defaults, in the fields' order."""
    usual = type(section)().__dict__
    return ((name, value) for name, value in section if value != usual[name])


def _given(section: BaseModel) -> Iterator[tuple[str, object]]:
    """What an option can say: all but nothing and no."""
    return ((name, v) for name, v in section if v is not None and v is not False and v != "")


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
