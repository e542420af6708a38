"""`fl.fit`: train what is trainable, keep the best, prove that the rest did not move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

from torch import nn

from frostline.callbacks.logs import MetricsLog, TensorBoardLog
from frostline.callbacks.notebook import notebook_hooks
from frostline.callbacks.saving import Saver
from frostline.calling import in_turn
from frostline.config import DataSettings, FeatureSettings, ModelSettings, RunSettings
from frostline.cutting import Origin
from frostline.data import Batches, Samples, open_data
from frostline.devices import Compute, resolve_device
from frostline.engine import Hook, Training, even_out, train_phases
from frostline.errors import ConfigError, TrainingError, a_type
from frostline.fitting.beginning import about, begun, check_settings, continued, run_folder
from frostline.fitting.first_samples import FirstSamples
from frostline.fitting.phases import PhasePipelines
from frostline.fitting.together import (
    check_alike,
    check_same_data,
    check_shared,
    check_whole,
    of_all,
    resumes,
)
from frostline.freezing import Proof
from frostline.groups import param_groups
from frostline.plans import Plan
from frostline.recipe import Recipe, check_alone, recipe_from
from frostline.records import EpochRecord, Journal, PhaseRecord, RunFolder
from frostline.reports import make_report, promise_at_end
from frostline.selectors import inventory
from frostline.session import PipelineOptions, Session, kept_lines
from frostline.tables import Displayed
from frostline.tasks import CallableTask, Classification, Metrics, Task, TaskSettings, task_of
from frostline.wording import either, option
from frostline.world import World, together, world_here
from frostline.wrappers import check_is_model

_Kind = TypeVar("_Kind")
_MANY_EPOCHS = 5  # after which it is worth saying that the first one was the best
_COMPILED = 10**6  # variants of one code: more than a process will make


@final
@dataclass(frozen=True)
class Run(Displayed):
    """What a run gave. `model` holds the weights of the best epoch.

    Attributes:
        history: a record for each epoch.
        best: the epoch whose weights are kept.
        proof: of the frozen part.
        folder: where it was written; `None` if nowhere.
        says: lines for people on what was computed once, or why nothing could be.
        computed: rows of features that this run computed; the others were in the store.
        phases: a record for each phase; one where there was no plan.
        task: what was trained for, with what the data made of it: names, scales, thresholds.

    Example:
        >>> run = fl.fit(model, data, data, epochs=2, lr=1e-2)
        >>> [record.epoch for record in run.history]
        [1, 2]
        >>> run.proof.tensors
        7
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best: EpochRecord
    proof: Proof
    folder: RunFolder | None
    says: tuple[str, ...] = ()
    computed: int = 0
    phases: tuple[PhaseRecord, ...] = ()
    task: Task = field(default_factory=Classification)
    _report: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def write_report(self) -> None:
        """Write the report of a run that left it for later; whatever goes wrong is a notice."""
        if self._report is not None:
            self._report()

    def __repr__(self) -> str:
        found, many = self.best.validation, "s" if len(self.history) > 1 else ""
        return "\n".join(
            (
                f"Run of {type(self.model).__name__}, {len(self.history)} epoch{many}; "
                f"kept is epoch {self.best.epoch}: {found.line()} on {found.samples} samples",
                f"Verified  {self.proof}",
                *self.says,
                *([f"Written   to {self.folder.root}"] if self.folder else []),
            )
        )


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
    loss: Callable[[Any, Any], Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    features: str | Path = "auto",
    forms: Sequence[str] = (),
    compile: bool = False,  # noqa: A002 - the field's word
    hooks: Iterable[Hook] | None = None,
    settings: RunSettings | None = None,
    world: World | None = None,
    origin: Origin | None = None,
    report: bool = True,
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

    Under `torchrun` and `accelerate launch` all processes train one model, to the losses that one
    process gives; the first one writes. Batch size, data and results are those of all together;
    see `docs/processes.md`.

    In several threads of a process runs take turns, since random numbers are the process's.

    Args:
        train: dataset of (input, target), or an iterable of batches of these.
        val: the same; never trained on.
        out: a new folder for deltas, metrics and settings; nothing is kept if `None`.
        plan: phases to train in, one after the other; without one, what is trainable now.
        recipe: how to train; or name its options here: `epochs=5, lr=1e-3, patience=3`. The
            phases of a plan have lengths of their own, and take from here what they leave open.
        task: what targets are, what is minimised and measured; by default `classification`, with
            class indices as targets and cross-entropy. Also `multilabel`, `regression`,
            `segmentation`, `tokens`, or a `fl.Task`.
        loss: in place of a task, `(outputs, targets) -> scalar` to minimise; outputs are what the
            model returns, targets what the data give.
        metrics: beside a loss, the same by name to judge by; the first decides which epoch is the
            best. `{"cost": ("lower", cost)}` says which direction is better, where the name of a
            metric does not.
        classes: names of the classes; by default `train.classes`, else their numbers.
        resume: go on with the run in `out` from where it was last written. With more epochs than
            it had, or a plan that begins with its phases, it is trained for longer.
        features: folder of the feature store; `auto` is one in the user's cache folder, `off` is
            the plain loop.
        forms: how the frozen part is computed in each phase, as another run recorded it in its
            `run.toml`; by default in what the machine is best at within the precision.
        compile: compile what is trained with `torch.compile`.
        hooks: `fl.Hook`s that the loop calls, besides those that save and log. Without any a
            notebook shows how the run goes; `[]` shows nothing there either.
        settings: of a run that was prepared; in place of all that they hold.
        world: who else trains this model; by default the processes that a launcher started
            together with this one, see `frostline.world.world_here`.
        origin: who made the model, where its line is to be kept beside the features; as a
            prepared run says it.
        report: write the report of the run in `out`; else `run.write_report()` does, as where the
            result is to be told first.

    Raises:
        ConfigError: `model` is no module, an option is unknown or out of range, the plan does not
            fit the model, the task has no metric of the name to monitor, or the run to resume is
            another one.
        FreezeError: nothing is trainable.
        DataError: targets do not fit the task, or there is no data.
        ModelError: the model's outputs do not, as where it has not one logit for each class.
        OutputError: `out` exists or cannot be written.
        TrainingError: the loss is not finite, or a batch does not go through.
        DriftError: something frozen moved; what was trained is kept in `out`.
        FrostlineError: another process failed; of its kind, with its words.

    Example:
        >>> print(fl.fit(model, data, data, epochs=2, lr=1e-2))
        Run of Sequential, 2 epochs; kept is epoch ...: accuracy ... on 16 samples
        Verified  7 frozen tensors (1.03 KB) are bit for bit as they were
        ...
    """
    check_is_model(model)
    forms = (forms,) if isinstance(forms, str) else tuple(_listed("forms", forms, str))
    hooks = notebook_hooks() if hooks is None else tuple(_listed("hooks", hooks, Hook))
    settings = settings or RunSettings(
        model=ModelSettings.from_python(type(model).__name__),
        data=DataSettings(batch_size=batch_size),
        training=_recipe(recipe, options, plan),
        features=FeatureSettings(store=str(features), compile=compile, forms=forms),
        plan=plan.phases if plan else (),
        device=device,
    )
    kind = task_given(task, classes, loss, metrics)
    world = world_here(settings.device) if world is None else world
    with together(world):
        check_settings(settings)
        check_shared(settings, world)
        check_whole(model)
        resume = resumes(out, world, resume=resume)
        made = _Made(model, origin if world.size == 1 else None)
        run = _fitted(made, (train, val), kind, settings, hooks, world, out=out, resume=resume)
        if report:
            run.write_report()
        return run


class _Made(NamedTuple):
    """A model, and who made it where that is known."""

    model: nn.Module
    origin: Origin | None


@final
@dataclass(frozen=True)
class Outset:
    """What a run begins with, once its first samples were looked at.

    Attributes:
        data: opened, to train and to validate on; `plain` are their batches in a plain loop.
        task: completed by what the data made of it.
        like: metrics of a few samples, as all epochs will have them.
        settings: completed by the task.
        asked: of the pipeline.
    """

    data: tuple[Samples, Samples]
    first: FirstSamples
    task: Task
    like: Metrics
    settings: RunSettings
    asked: PipelineOptions
    plain: tuple[Batches, Batches]


def outset(
    model: nn.Module,
    given: tuple[object, object],
    task: Task,
    settings: RunSettings,
    world: World,
    *,
    origin: Origin | None = None,
) -> Outset:
    """Open data, look at a few samples, and complete task and settings by them.

    Args:
        origin: of the model, where it is known; then its line may be one that is kept.
    Raises: as `fit`.
    """
    lines = origin and kept_lines(settings.features.store, origin)
    inventory(model)  # refuses lazy layers, which the first samples would give a shape
    if not settings.plan:
        param_groups(model, lr=1.0)  # refuses one in which nothing trains
    train, val = given
    data, judged = (open_data(train), open_data(val)), settings.features.store == "auto"
    check_same_data(data, world)
    compute = Compute(settings.device)
    first = FirstSamples.of(model, data[1], task, compute, judged=judged, lines=lines)
    task = task.completed(first.found, data=train, recipe=settings.training)
    for samples in data:
        first.check_targets(samples, task)
    like = _first_metrics(task, first)
    settings = _completed(settings, task, like)
    asked = replace(_pipeline_options(settings, task, first, world), lines=lines)
    return Outset(data, first, task, like, settings, asked, asked.plain(*data))


def _fitted(
    made: _Made,
    given: tuple[object, object],
    task: Task,
    settings: RunSettings,
    hooks: tuple[Hook, ...],
    world: World,
    *,
    out: str | Path | None,
    resume: bool,
) -> Run:
    # Over 40 lines, since each step needs what those before it made.
    model = made.model
    begin = outset(model, given, task, settings, world, origin=made.origin)
    data, plain, asked, first = begin.data, begin.plain, begin.asked, begin.first
    task, like, settings = begin.task, begin.like, begin.settings
    recipe = settings.training
    kept = out if world.writes else None
    journal = Journal(None if kept is None else RunFolder(Path(kept)).course, asked.device)
    said_to = (journal.notice, *(hook.on_notice for hook in hooks))
    _say(said_to, *task.says)
    if (plan := settings.as_plan()) and not resume:
        by_name = {"monitor": like.metric(recipe.monitor).name}  # checks know some directions
        found = plan.check(model, recipe=recipe.model_copy(update=by_name))
        _say(said_to, *(f"Warning   {warning}" for warning in found))
    with run_folder(kept, resume=resume and world.writes) as folder:
        written, lines = continued(folder, settings, resume=resume)
        written = of_all(written, world)
        _say(said_to, *lines)
        plan = written.as_plan()
        session = Session(
            model,
            plan,
            recipe=recipe,
            measure=(lambda: asked.batch_size * first.step_seconds(model, task)) if plan else None,
            steps_per_epoch=len(plain[0]),
            world=world,
        )
        check_alike(session.planned, world)
        begun(folder, written, session, resume=resume)
        even_out(model, session.planned, world)
        saver = Saver(folder, about(written), resume=resume, task=task, like=like)
        make = partial(session.data, *data, asked, plain=plain, example=first.inputs)
        pipelines = PhasePipelines(make, written, folder, journal, hooks)
        training = Training(session, Compute(settings.device, recipe.mixed))
        logs = folder and (MetricsLog(folder.metrics), TensorBoardLog(folder.tensorboard))
        with _room_to_compile(settings):
            called = (saver, *(logs or ()), pipelines, *hooks)
            train_phases(training, pipelines, task=task, hooks=called)
        return _ended(training, saver, pipelines, folder, task)


def _pipeline_options(
    settings: RunSettings, task: Task, first: FirstSamples, world: World
) -> PipelineOptions:
    recipe, features = settings.training, settings.features
    return PipelineOptions(
        device=resolve_device(settings.device),
        batch_size=settings.data.batch_size,
        seed=recipe.seed,
        features=features.store,
        storage=features.storage,
        budget_bytes=features.budget_bytes,
        precision=recipe.prefix_precision,
        seconds_per_sample=first.seconds,
        operations_per_sample=first.operations,
        compile=features.compile,
        as_targets=task.targets,
        world=world,
        known=None if settings.plan else first.cut,
    )


def _ended(
    training: Training,
    saver: Saver,
    pipelines: PhasePipelines,
    folder: RunFolder | None,
    task: Task,
) -> Run:
    """Prove the whole run, put the best weights, and write result and report."""
    proof = training.session.verify()
    best_epoch, epochs = training.position.best.epoch, len(training.history)
    if not best_epoch:
        monitor = training.history[-1].validation.metric(training.session.recipe.monitor)
        raise TrainingError(
            f"the validation {monitor.name} was never a number, so no epoch is "
            f"the best. Look at the metrics; lower the learning rate ({option('lr')})."
        )
    saver.put_best(training.model)
    even_out(training.model, training.session.planned, training.session.world)
    best = training.history[best_epoch - 1]
    if best_epoch == 1 and epochs >= _MANY_EPOCHS:
        pipelines.say(
            f"Note      the first of {epochs} epochs was the best, and is kept: what came after "
            "did not help these validation samples. Try a lower learning rate, or validate on more."
        )
    phases = tuple(training.phase_history)
    task = task.settled(best.validation)
    if folder:
        if pipelines.settings.task != (kept := _kept_task(task)):
            pipelines.settings.model_copy(update={"task": kept}).write(folder.settings)
        frozen = {
            "tensors": proof.tensors,
            "bytes": proof.nbytes,
            "fingerprint": str(proof.fingerprint),
        }
        ended: dict[str, object] = {
            "frozen": frozen,
            "phases": [phase.as_dict() for phase in phases],
        }
        if not task.classes:
            ended["tables"] = [asdict(table) for table in best.validation.tables()]
        folder.write_result({"epoch": best.epoch, **best.validation.as_dict(), **ended})
        pipelines.on_end()
    training.session.world.barrier()  # none goes on before the first has written all
    return Run(
        training.model,
        tuple(training.history),
        best,
        proof,
        folder,
        pipelines.says,
        pipelines.computed,
        phases,
        task,
        partial(_write_report, folder, proof, pipelines) if folder else None,
    )


def _say(said_to: Iterable[Callable[[str], None]], *lines: str) -> None:
    for line in lines:
        for say in said_to:
            say(line)


def _recipe(recipe: Recipe | None, options: dict[str, object], plan: Plan | None) -> Recipe:
    if plan is not None and not isinstance(plan, Plan):
        raise ConfigError(
            f"plan is {a_type(plan)}. Give a fl.Plan: fl.Plan.load(path) reads one from a "
            "file, fl.Plan([fl.Phase(...)]) makes one."
        )
    if plan is not None and "epochs" in options:
        raise ConfigError("got a plan and epochs beside it. Write the epochs into its phases.")
    return recipe_from(recipe, options, fit)


def _listed(name: str, given: object, kind: type[_Kind]) -> Iterator[_Kind]:
    """What a list holds, if that is of the kind it should be."""
    wanted = "texts, as a run.toml has them" if kind is str else "objects of fl.Hook"
    if not isinstance(given, Iterable):
        raise ConfigError(f"{name} is {a_type(given)}. Give a list of {wanted}.")
    for one in given:
        if not (isinstance(one, kind) or (kind is Hook and hasattr(one, "on_step"))):
            raise ConfigError(f"{name} holds {a_type(one)}. Give a list of {wanted}.")
        yield one


def _completed(settings: RunSettings, task: Task, like: Metrics) -> RunSettings:
    """With the classes that were found, and only metrics of the task to monitor."""
    for name in (settings.training.monitor, *(p.until.monitor for p in settings.plan if p.until)):
        like.metric(name)  # refuses one that the task has not
    data = settings.data.model_copy(update={"classes": task.classes})
    return settings.model_copy(update={"data": data, "task": _kept_task(task)})


def _kept_task(task: Task) -> TaskSettings | None:
    """What of a task stands in `run.toml`; of a classification its classes say it all."""
    return None if task.classes else task.settings()


def _first_metrics(task: Task, first: FirstSamples) -> Metrics:
    """Of a few samples: which metrics there will be."""
    found = task.summarise(first.found.outputs, first.found.targets)
    if not isinstance(found, Metrics):
        raise ConfigError(
            f"summarise of {type(task).__name__} gave {a_type(found)}. Return fl.Metrics, as "
            "fl.Metrics((fl.Metric('error', value, better='lower'),), samples=len(targets))."
        )
    return found


def task_given(
    task: Task | str | None,
    classes: Sequence[str] | None,
    loss: Callable[[Any, Any], Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Task:
    """The task that these arguments say; a classification where they say nothing.

    Raises:
        ConfigError: two of them say it.
    """
    if loss is not None:
        check_alone(loss=loss, task=task, classes=classes)
        return CallableTask(loss, metrics)
    if metrics is not None:
        raise ConfigError("got metrics without a loss. Give both, or a task that has its own.")
    if classes is None:
        return task_of(task)
    if task in (None, "classification"):
        return Classification(classes)
    raise ConfigError("got classes beside a task. Give them to it: task=fl.Classification(names).")


@contextmanager
def _room_to_compile(settings: RunSettings) -> Iterator[None]:
    """Each phase and each run compiles anew; torch runs a code that did so eight times in eager."""
    if not settings.features.compile:
        yield
        return
    from torch._dynamo import config

    with config.patch(recompile_limit=_COMPILED, accumulated_recompile_limit=_COMPILED):
        yield


def _write_report(folder: RunFolder, proof: Proof, pipelines: PhasePipelines) -> None:
    """Write the report; whatever goes wrong with it does not make a trained run fail."""
    try:
        make_report(folder, pipelines.settings, promise_at_end(proof)).save(folder.report)
    except Exception as error:
        root = folder.root
        retry = f"fl.open_run({str(root)!r}).report().save(path)"
        pipelines.say(
            f"Warning   the run is whole, but its report was not written: {error}. "
            f"{either(retry, f'`frostline report {root}`')} tries again."
        )
