"""`fl.fit`: train what is trainable, keep the best, prove that the rest did not move."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import final

from torch import Tensor, nn

from frostline._files import json_with_sum, write_text
from frostline.callbacks.logs import logs_in
from frostline.callbacks.saving import Saver
from frostline.calling import in_turn
from frostline.config import DataSettings, FeatureSettings, ModelSettings, RunSettings
from frostline.data import make_batches, open_data
from frostline.deltas import all_tensors
from frostline.devices import resolve_device
from frostline.engine import Hook, Training, train_phases
from frostline.errors import ConfigError, DriftError, TrainingError
from frostline.freezing import Proof
from frostline.groups import param_groups
from frostline.plans import Phase, Plan
from frostline.recipe import Recipe, config_errors, recipe_from
from frostline.records import BY_MODEL, EpochRecord, Journal, PhaseRecord, RunFolder
from frostline.runs.first_samples import FirstSamples
from frostline.runs.phases import Book, PhasePipelines
from frostline.runs.reporting import make_report, promise_at_end
from frostline.session import Session, Survey, survey
from frostline.tasks import Classification, Metrics, Task, task_of
from frostline.tuning import PLAIN

_COMPILED = 10**6  # variants of one code: more than a process will make


@final
@dataclass(frozen=True)
class Run:
    """What a run gave. `model` holds the weights of the best epoch.

    Attributes:
        history: a record for each epoch.
        best: the epoch whose weights are kept.
        proof: of the frozen part.
        folder: where it was written; `None` if nowhere.
        says: lines for people on what was computed once, or why nothing could be.
        computed: rows of features that this run computed; the others were in the store.
        phases: a record for each phase; one where there was no plan.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best: EpochRecord
    proof: Proof
    folder: RunFolder | None
    says: tuple[str, ...] = ()
    computed: int = 0
    phases: tuple[PhaseRecord, ...] = ()


@in_turn
def fit(
    model: nn.Module,
    train: object,
    val: object,
    *,
    out: str | Path | None = None,
    plan: Plan | None = None,
    recipe: Recipe | None = None,
    batch_size: int = 32,
    task: Task | str | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    features: str | Path = "auto",
    forms: Sequence[str] = (),
    compile: bool = False,  # noqa: A002 - the field's word
    hooks: Iterable[Hook] = (),
    settings: RunSettings | None = None,
    **options: object,
) -> Run:
    """Train the trainable part of `model` for a task; the frozen part stays as it is.

    Freeze first (`fl.freeze`, `fl.train_only`); parameters with `requires_grad=False` set by hand
    are frozen fully. Each epoch trains in train mode and validates in eval mode without
    gradients. At the end the model holds the best epoch's weights and the frozen part is verified.

    With a plan each phase freezes and thaws by its selectors, and what was frozen in it is
    verified when it ends; the model stays frozen as in the last one.

    What lies below the frost line is computed once for each sample, in the first faithful form
    that suits the processor, and kept in a feature store; the epochs train from there. With
    `precision="exact"` the results are those of the plain loop (`features="off"`).

    In several threads of a process runs take turns, since random numbers are the process's.

    Args:
        train: dataset of (input, target), or an iterable of batches of these.
        val: the same; never trained on.
        out: a new folder for deltas, metrics and settings; nothing is kept if `None`.
        plan: phases to train in, one after the other; without one, what is trainable now.
        recipe: how to train; or name its options here: `epochs=5, lr=1e-3, patience=3`. The
            phases of a plan have lengths of their own, and take from here what they leave open.
        task: what targets are, what is minimised and measured; by default `classification`, with
            class indices as targets and cross-entropy.
        classes: names of the classes; by default `train.classes`, else their numbers.
        resume: go on with the run in `out` from where it was last written.
        features: folder of the feature store; `auto` is one in the user's cache folder, `off` is
            the plain loop.
        forms: how the frozen part is computed in each phase, as another run noted it in its
            `run.toml`; by default in what the machine is best at within the precision.
        compile: compile what is trained with `torch.compile`.
        hooks: called by the loop, besides those that save and log.

    Raises:
        ConfigError: an option is unknown or out of range, the plan does not fit the model, the
            task has no metric of the name to monitor, or the run to resume is another one.
        FreezeError: nothing is trainable.
        DataError: targets do not fit the task, or there is no data.
        ModelError: the model's outputs do not, as where it has not one logit for each class.
        OutputError: `out` exists or cannot be written.
        TrainingError: the loss is not finite, or a batch does not go through.
        DriftError: something frozen moved; what was trained is kept in `out`.
    """
    recipe = _recipe(recipe, options, plan)
    course = RunFolder(Path(out)).course if out is not None else None
    journal, hooks = Journal(course, resolve_device(device)), tuple(hooks)
    settings = settings or _settings(model, recipe, batch_size, device, features, forms, compile)
    _check_forms(settings, len(plan) if plan else 1)
    if plan is None:
        param_groups(model, lr=1.0)  # refuses early when nothing is trainable
    seen, unseen, open_task = open_data(train), open_data(val), _task(task, classes)
    batches, validation = (
        make_batches(
            samples,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=recipe.seed,
            as_targets=open_task.targets,
        )
        for samples, shuffle in ((seen, True), (unseen, False))
    )
    if settings.features.compile:
        _check_compiler(device)
    judged = settings.features.store == "auto"
    first = FirstSamples.of(model, unseen, open_task, device=device, judged=judged)
    found = first.found
    task = open_task.completed(found.outputs, found.targets, found.names, data=train, recipe=recipe)
    metrics = task.summarise(found.outputs, found.targets)
    recipe = _monitored(recipe, plan, metrics)
    phases = _phases(model, recipe, plan, journal, hooks)
    settings = _completed(settings, task, plan, recipe)
    with _folder(out, resume=resume) as folder:
        measure = partial(first.step_seconds, model, task) if plan else None
        planned = survey(model, phases, measure=measure)
        session = Session(model, plan, recipe=recipe, planned=planned, steps_per_epoch=len(batches))
        book = _begun(folder, settings, planned, resume=resume)
        saver = Saver(
            folder,
            _about(settings),
            resume=resume,
            start=_start(model, planned) if plan else None,
            keep=recipe.keep,
            task=task,
            like=metrics,
        )
        make = partial(
            session.data,
            seen,
            unseen,
            batch_size=batch_size,
            plain=(batches, validation),
            example=first.inputs,
            device=resolve_device(device),
            features=settings.features.store,
            storage=settings.features.storage,
            budget_bytes=settings.features.budget_bytes,
            compile=settings.features.compile,
            seconds_per_sample=first.seconds,
            operations_per_sample=first.operations,
            as_targets=task.targets,
        )
        pipelines = PhasePipelines(make, book, journal, hooks)
        logs = logs_in(folder) if folder else ()
        seconds = tuple(batch_size * each for each in planned.seconds_per_sample)
        with _room_to_compile(settings):
            training = train_phases(
                Training(session, plain_step_seconds=seconds),
                pipelines,
                task=task,
                device=device,
                hooks=(saver, *logs, pipelines, *hooks),
            )
        proof = session.verify()
        if not training.best_epoch:
            raise TrainingError(
                f"the validation {recipe.monitor} was never a number, so no epoch is the best. "
                "Look at the metrics; lower the learning rate (--lr)."
            )
        saver.put_best(model)
        best = training.history[training.best_epoch - 1]
        ended = tuple(training.phase_history)
        if folder:
            _write_result(folder, best, proof, ended)
            journal.write()
            _write_report(folder, book.settings, proof, (pipelines, *hooks))
        history = tuple(training.history)
        return Run(model, history, best, proof, folder, pipelines.says, pipelines.computed, ended)


def _phases(
    model: nn.Module,
    recipe: Recipe,
    plan: Plan | None,
    journal: Journal,
    hooks: tuple[Hook, ...],
) -> tuple[Phase, ...]:
    """The phases of a run, checked against the model; one where there is no plan."""
    if plan is None:
        return (Phase(epochs=recipe.epochs).completed(recipe),)
    for warning in plan.check(model, recipe=recipe):
        journal.notice(f"Warning   {warning}")
        for hook in hooks:
            hook.on_notice(f"Warning   {warning}")
    return tuple(phase.completed(recipe) for phase in plan)


def _recipe(recipe: Recipe | None, options: dict[str, object], plan: Plan | None) -> Recipe:
    if plan is not None and not isinstance(plan, Plan):
        raise ConfigError(
            f"plan is a {type(plan).__name__}. Give a fl.Plan: fl.Plan.load(path) reads one from a "
            "file, fl.Plan([fl.Phase(...)]) makes one."
        )
    if plan is not None and "epochs" in options:
        raise ConfigError("got a plan and epochs beside it. Write the epochs into its phases.")
    return recipe_from(recipe, options)


def _check_forms(settings: RunSettings, phases: int) -> None:
    """Refuse forms that would not be heeded."""
    forms, exact = settings.features.forms, settings.training.prefix_precision == "exact"
    if len(forms) > phases:
        raise ConfigError(
            f"got {len(forms)} forms for {phases} phase{'s' if phases > 1 else ''}. Give one for "
            "each phase, or none."
        )
    rounded = [form for form in forms if form not in (BY_MODEL, str(PLAIN))]
    if exact and rounded:
        raise ConfigError(
            f"precision 'exact' keeps every bit, and the form {rounded[0]!r} does not; leave one "
            "out."
        )
    if rounded and settings.features.store == "off":
        raise ConfigError(
            "without features the model computes all itself, so the form "
            f"{rounded[0]!r} would not be heeded; leave out the form, or 'off'."
        )


def _check_compiler(device: str) -> None:
    """Refuse at once what torch.compile would refuse after the features were computed."""
    known = ("g++", "clang++", "c++")
    there = "CXX" in os.environ or any(map(shutil.which, known))
    if resolve_device(device).type == "cpu" and not there:
        raise ConfigError(
            "torch.compile needs a C++ compiler on a CPU, and none of "
            f"{', '.join(known)} is there. Install g++, or leave --compile out."
        )


def _settings(
    model: nn.Module,
    recipe: Recipe,
    batch_size: int,
    device: str,
    features: str | Path,
    forms: Sequence[str],
    compile_suffix: bool,
) -> RunSettings:
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


def _completed(settings: RunSettings, task: Task, plan: Plan | None, recipe: Recipe) -> RunSettings:
    """With the classes that were found, the plan, and what is monitored."""
    data = settings.data.model_copy(update={"classes": task.classes})
    return settings.model_copy(
        update={"data": data, "plan": plan.phases if plan else (), "training": recipe}
    )


def _task(task: Task | str | None, classes: Sequence[str] | None) -> Task:
    if classes is None:
        return task_of(task)
    if task in (None, "classification"):
        return Classification(classes)
    raise ConfigError("got classes beside a task. Give them to it: task=fl.Classification(names).")


def _monitored(recipe: Recipe, plan: Plan | None, metrics: Metrics) -> Recipe:
    """The recipe with a metric of the task to monitor: the one that was asked for, or the first.

    Raises:
        ConfigError: the recipe or a phase asks for one that the task has not.
    """
    if "monitor" not in recipe.model_fields_set:
        recipe = recipe.model_copy(update={"monitor": metrics.metric().name})
    asked = [phase.until.monitor for phase in plan or () if phase.until is not None]
    for name in (recipe.monitor, *asked):
        metrics.metric(name)
    return recipe


def _about(settings: RunSettings) -> dict[str, str]:
    """What a delta says about how to get its base, and about the plan that it belongs to."""
    model = settings.model
    notes = {"model": model.name, "weights": model.weights}
    if settings.data.classes:
        notes["classes"] = json.dumps(settings.data.classes)
    if not model.is_from_python:
        notes["head"] = json.dumps({"on": model.on, "hidden": model.hidden, "at": model.head})
        notes["weights_digest"] = model.weights_digest
    if settings.plan:
        notes["plan"] = Plan(settings.plan).dumps()
    return notes


@contextmanager
def _folder(out: str | Path | None, *, resume: bool) -> Iterator[RunFolder | None]:
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


@contextmanager
def _room_to_compile(settings: RunSettings) -> Iterator[None]:
    """Each phase and each run compiles anew; torch runs a code that did so eight times in eager."""
    if not settings.features.compile:
        yield
        return
    from torch._dynamo import config

    with config.patch(recompile_limit=_COMPILED, accumulated_recompile_limit=_COMPILED):
        yield


def _begun(
    folder: RunFolder | None, settings: RunSettings, planned: Survey, *, resume: bool
) -> Book:
    """Write down settings and frozen part; or make sure that a resumed run has the same."""
    if folder is None or not resume:
        book = Book(folder, settings)
        if folder is not None:
            book.write()
            folder.write_frozen(planned.untouched)
            if settings.plan:
                Plan(settings.plan).save(folder.plan)
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


def _start(model: nn.Module, planned: Survey) -> dict[str, Tensor]:
    """Copies of what no phase leaves alone."""
    moving = {n: t for n, t in all_tensors(model).items() if n not in planned.untouched.tensors}
    return {name: tensor.detach().clone() for name, tensor in moving.items()}


def _short(phases: Sequence[Phase]) -> str:
    return f"fl.Plan({list(phases)})" if phases else "none"


def _write_report(
    folder: RunFolder, settings: RunSettings, proof: Proof, hooks: Iterable[Hook]
) -> None:
    """Write the report; whatever goes wrong with it does not make a trained run fail."""
    try:
        make_report(folder, settings, promise_at_end(proof)).save(folder.report)
    except Exception as error:
        for hook in hooks:
            hook.on_notice(
                f"Warning   the run is whole, but its report was not written: {error}. "
                f"`frostline report {folder.root}` tries again."
            )


def _write_result(
    folder: RunFolder, best: EpochRecord, proof: Proof, phases: Sequence[PhaseRecord]
) -> None:
    result = {
        "epoch": best.epoch,
        **best.validation.as_dict(),
        "frozen": {
            "tensors": proof.tensors,
            "bytes": proof.nbytes,
            "fingerprint": str(proof.fingerprint),
        },
        "phases": [asdict(phase) for phase in phases],
    }
    write_text(folder.result, json_with_sum(result))
