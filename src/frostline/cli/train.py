"""`frostline train DATA --model M`: from pictures to a verified run."""

from __future__ import annotations

from dataclasses import asdict
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.choices import BadImages, Storage
from frostline.cli import _options as options
from frostline.cli._options import with_recipe
from frostline.cli._set_up import check_one_of, read_as
from frostline.cli._tasks import AskedTask
from frostline.errors import ConfigError, DeltaError, OutputError
from frostline.recipe import Recipe
from frostline.tables import hanging

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from frostline.config import RunSettings
    from frostline.engine import Hook
    from frostline.fitting import Run
    from frostline.runs import FinishedRun, Prepared, Start
    from frostline.world import World


# All that may stand beside `--resume RUN`; the rest is in the run's settings.
_BESIDE_RESUME = frozenset({"data", "out", "resume", "epochs", "weights", "device", "json"})
# What each phase of a plan says for itself.
_IN_A_PLAN = ("freeze", "train", "norm", "epochs")
_INTO_THE_PLAN = ", or write it into the plan"


ValFraction = Annotated[
    float, options.number("Share of each class to hold out where data is undivided.")
]
Folds = Annotated[int | None, typer.Option(help="Divide into this many folds instead.")]
OnBadImages = Annotated[BadImages, typer.Option(help="What to do about broken pictures.")]
Features = Annotated[
    str,
    typer.Option(
        help="Folder of stored features, or an address as s3://bucket/prefix; auto: in your cache "
        "folder; off: none.",
        metavar="DIR|off",
    ),
]
OnDisk = Annotated[
    Storage, typer.Option(help="How stored features lie on disk; auto keeps every bit.")
]
Forms = Annotated[
    list[str] | None,
    typer.Option(
        help="How the frozen part is computed, as a run recorded it: 'bfloat16 channels-last', or "
        "model; once for each phase. By default what the machine is best at.",
        metavar="FORM",
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile what is trained with torch.compile.")
]
Loss = Annotated[
    str,
    typer.Option(
        help="Of a regression: mse, mae or huber; of a segmentation: cross_entropy, dice or both.",
        metavar="LOSS",
    ),
]
Thresholds = Annotated[
    str,
    typer.Option(
        help="Probability from which on a label holds: a number, or best for each label's own.",
        metavar="P|best",
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Where longer texts are cut; by default as the model has it.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --out (or DATA, if it is one); with more --epochs, for longer.",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Begin with a run's best weights and its settings, on more pictures or classes.",
        metavar="RUN",
    ),
]


# Long since each option has a line here and one in the settings that it becomes.
@with_recipe
def train(
    context: typer.Context,
    data: options.Data,
    *,
    model: options.Model = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write the run to.")] = None,
    task: options.TaskKind = "auto",
    loss: Loss = "",
    thresholds: Thresholds = "",
    weights: options.Weights = "DEFAULT",
    freeze: options.Freeze = None,
    train: options.Train = None,
    norm: options.Norm = "hold",
    plan: options.PlanFile = None,
    head: options.Head = "",
    on: options.On = "classifier",
    dropout: options.Dropout = None,
    batch_size: options.BatchSize = 32,
    augment: options.Augment = "none",
    max_tokens: MaxTokens = None,
    file_column: options.FileColumn = "file",
    text_column: options.TextColumn = "",
    label_column: options.LabelColumn = "label",
    split_column: options.SplitColumn = "",
    val_fraction: ValFraction = 0.2,
    folds: Folds = None,
    fold: Annotated[int, typer.Option(help="Which fold to hold out, from 0.")] = 0,
    bad_images: OnBadImages = "skip",
    features: Features = "auto",
    storage: OnDisk = "auto",
    form: Forms = None,
    compile_: Compile = False,
    device: options.Device = "auto",
    from_: From = None,
    resume: Resume = False,
    json: options.Json = False,
    **recipe: Any,
) -> None:
    """Freeze part of a pretrained network, train the rest on your data, prove the freeze.

    By default everything is frozen but the new head. The run folder holds what was trained, the
    metrics of each epoch and all that is needed to repeat the run.
    """
    from frostline import config
    from frostline.fitting import lengthened
    from frostline.plans import Plan
    from frostline.records import RunFolder
    from frostline.runs import open_run

    check_one_of(freeze=freeze, train=train)
    phases = Plan.load(plan).phases if plan is not None else ()
    if phases:
        names = _IN_A_PLAN if phases[0].names_part else ("epochs",)
        _refuse(context, names, "a plan's phases say this for themselves", _INTO_THE_PLAN)
    if resume and model and out is None:
        told = "--resume goes on with a run's own settings"
        raise typer.BadParameter(f"{told}; leave out --model, or name the run by --out.")
    if resume and not model:
        others = [name for name in context.params if name not in _BESIDE_RESUME]
        _refuse(context, others, "--resume goes on with the run's own settings")
        moved = weights if _given(context, ["weights"]) else None
        settings, base = _stored(out or data, None if out is None else data, moved)
        if _given(context, ["device"]):
            settings = settings.model_copy(update={"device": device})
        if _given(context, ["epochs"]):
            before, settings = settings, _for_epochs(settings, recipe["epochs"])
            lengthened(RunFolder(out or data), before, settings)  # refuses it before any work
        return _go(settings, out or data, resume=True, as_json=json, base=base)
    earlier = None
    if from_ is not None:
        own = ("model", "head", "on", "dropout", "resume", "task", "loss", "thresholds")
        _refuse(context, own, "--from takes the model, head and task of that run, for a new one")
        earlier = open_run(from_, weights=weights if _given(context, ["weights"]) else None)
        model = earlier.settings.model.name
    if not model:
        raise typer.BadParameter("say which network, as --model resnet18.", param_hint="--model")
    _check_fold(folds, fold)
    hidden = options.hidden_widths(head, on=on)
    with options.usage_errors():
        settings = config.RunSettings(
            model=config.ModelSettings(
                name=model, weights=weights, on=on, hidden=hidden, dropout=dropout
            ),
            data=read_as(
                data,
                model,
                text_column=text_column,
                max_tokens=max_tokens,
                file_column=file_column,
                label_column=label_column,
                split_column=split_column,
                val_fraction=val_fraction,
                folds=folds,
                fold=fold,
                bad_images=bad_images,
                augment=augment,
                batch_size=batch_size,
            ),
            freeze=config.FreezeSettings(freeze=freeze, train=train, norm=norm),
            plan=phases,
            training=Recipe(**recipe),
            features=config.FeatureSettings(
                store=store_named(features),
                storage=storage,
                compile=compile_,
                forms=tuple(form or ()),
            ),
            device=device,
        )
    if earlier is not None:
        given = [name.strip("_") for name in context.params if _given(context, [name])]
        with options.usage_errors():
            settings = earlier.settings_to_begin(settings, given)
    elif resume and out and not _given(context, ["epochs"]) and RunFolder(out).settings.exists():
        # As long as it was to be, not as a new run would be.
        settings = _for_epochs(
            settings, config.RunSettings.read(RunFolder(out).settings).training.epochs
        )
    _check_storage(settings)
    asked = None if from_ else AskedTask(task, loss, thresholds)
    return _go(settings, out, resume=resume, as_json=json, earlier=earlier, asked=asked)


def _for_epochs(settings: RunSettings, epochs: int) -> RunSettings:
    training = settings.training.model_copy(update={"epochs": epochs})
    return settings.model_copy(update={"training": training})


def store_named(features: str) -> str:
    """A folder by its absolute path, so that the run can be resumed from anywhere."""
    from frostline.store import is_address

    is_word = features in ("auto", "off") or is_address(features)
    return features if is_word else str(Path(features).expanduser().resolve())


def _check_storage(settings: RunSettings) -> None:
    """Refuse to promise all bits and to keep fewer."""
    storage = settings.features.storage
    if settings.training.prefix_precision == "exact" and storage not in ("auto", "float32"):
        raise typer.BadParameter(
            f"--precision exact keeps every bit, and --storage {storage} does not; leave one out."
        )
    if settings.features.store == "off" and storage != "auto":
        raise typer.BadParameter(f"--features off stores nothing; leave out --storage {storage}.")


def _check_fold(folds: int | None, fold: int) -> None:
    if fold and folds is None:
        raise typer.BadParameter(
            f"asked for fold {fold} without folds. Say into how many to divide, as --folds 5.",
            param_hint="--fold",
        )
    if folds is not None and fold >= max(2, folds):
        raise typer.BadParameter(
            f"asked for fold {fold} of {folds}; they are counted from 0.", param_hint="--fold"
        )


def _refuse(context: typer.Context, names: Iterable[str], why: str, instead: str = "") -> None:
    """Refuse options that would not be heeded, if any of them stands on the command line."""
    if given := _given(context, names):
        raise typer.BadParameter(f"{why}; leave out {', '.join(given)}{instead}.")


def _given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Which of these options stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [n for n, found in sources.items() if found and found.name == "COMMANDLINE"]
    return [f"--{name.strip('_').replace('_', '-')}" for name in given]


def _stored(folder: Path, data: Path | None, weights: str | None) -> tuple[RunSettings, str]:
    """The settings of a run, and its base's weights if they are not where these say.

    `data`, if given, must be what it was trained on, or where that was moved to: whether it is
    the same is found by its content.
    """
    from frostline.runs import open_run

    run = open_run(folder, weights=weights)
    settings = run.settings
    if settings.model.is_from_python:
        raise ConfigError(
            f"{folder} was trained on a model handed over in Python ({settings.model.name}). "
            "Resume it there: fl.fit(model, ..., resume=True)."
        )
    known = Path(settings.data.path)
    if not known.exists() and data is None:
        raise ConfigError(
            f"{folder} was trained on {known}, which is gone. Where it was moved, say where to: "
            f"frostline train PATH --resume --out {folder}."
        )
    if data is not None and (now := data.expanduser().resolve()) != known:
        if known.exists():
            raise ConfigError(
                f"cannot resume with other data: {folder} was trained on {known}, not on {data}. "
                "Give that, or start a new run with another --out."
            )
        moved = settings.data.model_copy(update={"path": str(now)})
        settings = settings.model_copy(update={"data": moved})
    base = run.base_weights
    return settings, "" if base == settings.model.weights else base


def free_folder(model: str) -> Path:
    """`runs/resnet18-1`, or the next number that is free."""
    from frostline.models.spec import short_name

    folders = (Path("runs", f"{short_name(model)}-{number}") for number in count(1))
    return next(folder for folder in folders if not folder.exists())


def _go(
    settings: RunSettings,
    out: Path | None,
    *,
    resume: bool,
    as_json: bool,
    base: str = "",
    earlier: FinishedRun | None = None,
    asked: AskedTask | None = None,
) -> None:
    from frostline.cli._terminal import notes, output, print_json, say
    from frostline.fitting import resumes
    from frostline.world import decided, is_restartable, together, world_here

    aside = notes()
    page = aside if as_json else output()
    world = world_here(settings.device)
    if out is None and is_restartable():
        raise ConfigError(
            "processes that a launcher may start again must find their run: say its folder, --out."
        )
    folder = out or Path(decided(world, str(free_folder(settings.model.name))))
    try:
        with together(world):
            resume = resumes(folder, world, resume=resume)
            prepared = _prepared(settings, folder, resume, world, base, earlier, asked)
            describe(prepared, page, aside)
            if earlier is not None and prepared.start is not None and not resume:
                _describe_start(prepared.start, prepared, page)
            hooks = _shown(settings, page)
            run = prepared.run(folder, resume=resume, hooks=hooks, world=world, report=False)
    except KeyboardInterrupt:
        say(aside, _interrupted(folder))
        raise typer.Exit(1) from None
    if not as_json:
        _conclude(run, folder, page)
        return
    document = {
        "run": str(folder),
        "epoch": run.best.epoch,
        **run.best.validation.as_dict(),
        "history": [record.line() for record in run.history],
        "phases": [asdict(record) for record in run.phases],
        "frozen": {"tensors": run.proof.tensors, "fingerprint": str(run.proof.fingerprint)},
    }
    print_json(document)
    run.write_report()


def _prepared(
    settings: RunSettings,
    folder: Path,
    resume: bool,
    world: World,
    base: str,
    earlier: FinishedRun | None,
    asked: AskedTask | None,
) -> Prepared:
    """The run, ready to start, once it is known that its folder may be written."""
    from frostline.cli._terminal import counting
    from frostline.records import RunFolder
    from frostline.runs import open_run, prepare

    files = RunFolder(folder)
    if world.writes:
        files.check_idle()
    if resume:
        # With the run's own order of classes: runs of before counted numbers as text.
        opened = open_run(folder)
        classes, start = opened.settings.data.classes, opened.began_with
        data = settings.data.model_copy(update={"classes": classes})
        settings = settings.model_copy(update={"data": data})
    else:
        if world.writes:
            check_apart(folder, Path(settings.data.path))
            files.check_free()
        start = earlier.as_start() if earlier else None
        if asked is not None:
            settings = settings.model_copy(update={"task": asked.of(settings.data)})
    with counting("checking the data") as progress:
        return prepare(settings, weights=base, start=start, progress=progress)


def _shown(settings: RunSettings, page: Console) -> tuple[Hook, Hook]:
    from frostline.callbacks.progress import BatchBar, EpochTable
    from frostline.cli._terminal import notes

    return EpochTable(page), BatchBar(notes(), samples_per_batch=settings.data.batch_size)


def check_apart(folder: Path, data: Path) -> None:
    """Refuse to write a run where a later one would read it as pictures of a class."""
    where = data.expanduser().resolve()
    if where.is_dir() and folder.resolve().is_relative_to(where):
        raise OutputError(
            f"{folder} lies inside the data in {data}, where a later run would take it for a "
            "class. Choose an --out outside."
        )


def describe(prepared: Prepared, page: Console, aside: Console) -> None:
    """Say what will be trained on which data."""
    from frostline.cli._terminal import say

    splits = prepared.data.splits
    kind, names = prepared.task_words
    say(page, f"Data     {len(splits.train)} to train on, {len(splits.val)} to validate")
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    about = f"         {splits.how}; {len(names)} {kind}: {listed}"
    say(page, hanging(about, indent=9))
    say_findings(prepared, aside)
    say(page, f"Model    {prepared.loaded.spec}, head at {prepared.loaded.head}")
    say(page, f"Weights  {prepared.loaded.weights}")
    if prepared.mapping:
        say(page, hanging(f"Classes  {prepared.mapping}", indent=9))
    page.print()
    page.print(prepared.frozen.summary(depth=1).table())
    page.print()
    if plan := prepared.settings.as_plan():
        page.print(plan.table(prepared.loaded.model))
        page.print()


def say_findings(prepared: Prepared, aside: Console) -> None:
    """Say what looking through the data found."""
    from frostline.cli._terminal import say

    for finding in prepared.data.findings:
        say(aside, f"{finding.level.capitalize()}: {finding.message}", style="yellow")


def _describe_start(start: Start, prepared: Prepared, page: Console) -> None:
    from frostline.cli._terminal import say

    for line in start.changes(prepared.data):
        say(page, hanging(line, indent=9))
    page.print()


def _conclude(run: Run, folder: Path, page: Console) -> None:
    from frostline.cli._terminal import print_parts, say
    from frostline.records import phase_table

    found = run.best.validation
    line = f"Best epoch {run.best.epoch}: {found.line()} on {found.samples} held-out samples"
    page.print()
    print_parts(page, [*found.tables(), line])
    if len(run.phases) > 1:
        page.print(phase_table(run.phases))
    if len(run.phases) > 1 and not run.proof.tensors:
        say(
            page, "Verified: what each phase froze did not move in it; nothing stayed frozen in all"
        )
    else:
        say(page, f"Verified: {run.proof}")
    say(page, f"Written to {folder}; next: frostline predict {quote(str(folder))} FILE...")
    run.write_report()
    if run.folder is not None and run.folder.report.exists():
        say(page, f"Report: {run.folder.report}")


def _interrupted(folder: Path) -> str:
    from frostline.deltas import read_delta
    from frostline.records import RunFolder

    command = f"frostline train --resume {quote(str(folder))}"
    try:
        epochs, _, batches = read_delta(RunFolder(folder).last).about["position"].partition(".")
    except DeltaError:
        if not RunFolder(folder).settings.exists():
            return "Stopped before training began; nothing was written."
        return (
            "Stopped within the first epoch; only the settings are written. "
            f"Begin again with: {command}"
        )
    within = f"batch {batches} of epoch {int(epochs) + 1}"
    place = within if batches else f"the end of epoch {epochs}"
    return f"Stopped. {folder} keeps what was trained up to {place}. Go on with: {command}"
