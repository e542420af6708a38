"""From settings to all that a run needs: pictures read and checked, a model built and frozen."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from frostline.config import FreezeSettings, ModelSettings, RunSettings
from frostline.data import Augment, ImageDataset, MaskFile, Samples, TextSplits
from frostline.devices import resolve_device
from frostline.engine import Hook, Training
from frostline.errors import (
    ConfigError,
    FreezeError,
    FrostlineError,
    ModelError,
    OutputError,
    one_line,
)
from frostline.fitting import Run, check_settings, fit
from frostline.freezing import Frozen, freeze, train_only
from frostline.models import LoadedModel, ModelSpec, load_model, set_dropout
from frostline.models.classifiers import mapping_words, own_order
from frostline.models.file_source import line_in
from frostline.preprocessing import Preprocessing, TextPreprocessing
from frostline.records import DataNotes, RunFolder, read_data_notes, write_data_notes
from frostline.runs import material
from frostline.runs.material import Audited
from frostline.runs.origins import origin_of
from frostline.runs.starting import Start, check_kept
from frostline.selectors import path
from frostline.session import freeze_for, survey
from frostline.tasks import Classification, Task, TaskSettings, Tokens, task_from
from frostline.wording import option
from frostline.world import World, world_here

_TOLD: dict[str, str] = {
    "classification": "classes",
    "multilabel": "labels",
    "regression": "targets",
    "segmentation": "classes of pixels",
    "tokens": "tags",
}


@final
@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    Attributes:
        settings: as given, completed by what was found: classes, head, weights' digest.
        loaded: the model with weights and head, frozen as asked.
        data: the pictures or texts after the audit, and its findings.
        frozen: handle of the frozen part.
        start: weights of another run that it begins with.
        task: what is learnt, as far as it is known before training.
        mapping: which class of the data each logit of a kept classifier is taken for, for people;
            empty where the head is new.
    """

    settings: RunSettings
    loaded: LoadedModel
    data: Audited
    frozen: Frozen
    task: Task
    start: Start | None = None
    mapping: str = ""

    def run(
        self,
        out: str | Path,
        *,
        resume: bool = False,
        hooks: Iterable[Hook] = (),
        world: World | None = None,
        report: bool = True,
    ) -> Run:
        """Train, into the folder `out`.

        A new run that fails before its first epoch is finished leaves no folder behind, so that
        it can be started again with other settings.

        Args:
            world: who else trains this run; by default as `fit` finds them.
            report: as for `fit`.
        Raises:
            FrostlineError: as `fit`.
            ModelError: the forward of the user's own model raised RuntimeError, as where shapes
                do not fit.
        """
        splits, folder = self.data.splits, RunFolder(Path(out))
        train_set, val_set = self.datasets()
        trained_on, validated_on = material.contents(self.data)
        targets = material.targets_digest(self.data, trained_on, validated_on)
        world = world_here(self.settings.device) if world is None else world
        if resume and world.writes:
            self._check_same(folder, "training", folder.read_trained_on(), trained_on)
            self._check_same(folder, "validation", folder.read_validated_on(), validated_on)
            self._check_same_targets(folder, targets)
        findings = tuple((one.level, one.code, one.message) for one in self.data.findings)
        notes = DataNotes(splits.how, *splits.counts, findings, targets)
        noting = (_Noting(self, folder, trained_on, validated_on, notes),) if world.writes else ()
        try:
            return fit(
                self.loaded.model,
                train_set,
                val_set,
                out=out,
                resume=resume,
                hooks=(*noting, *hooks),
                task=self.task,
                settings=self.settings,
                world=world,
                origin=origin_of(self.loaded, resolve_device(self.settings.device)),
                report=report,
            )
        except (RuntimeError, ValueError) as error:  # torch's words, and those of transformers
            if not isinstance(error, FrostlineError) and _is_of_own_forward(error, self.loaded):
                raise _own_error(error, self.loaded) from error
            raise

    def _check_same(
        self, folder: RunFolder, part: str, before: Iterable[str], now: Iterable[str]
    ) -> None:
        if before and set(before) != set(now):
            what = "texts" if self.settings.data.is_text else "pictures"
            raise ConfigError(
                f"cannot resume: the {part} {what} in {self.settings.data.path} are not those "
                f"that {folder.root} began with. Restore them, or start a new run."
            )

    def _check_same_targets(self, folder: RunFolder, now: str) -> None:
        try:
            before = read_data_notes(folder.data).targets
        except (OSError, ValueError):  # it is for the report, which says so
            return
        if before and before != now:
            raise ConfigError(
                f"cannot resume: the labels, targets or masks in {self.settings.data.path} are not "
                f"those that {folder.root} began with. Restore them, or start a new run."
            )

    def with_settings(self, settings: RunSettings) -> Prepared:
        """The same data with a model that is built anew, by settings of another head or recipe.

        Raises:
            ModelError, WeightsError, SelectorError, FreezeError, ConfigError: as `build`.
        """
        loaded, frozen = build(settings, self.task)
        model = lasting(settings.model, loaded)
        settings = settings.model_copy(update={"model": model})
        return replace(self, settings=settings, loaded=loaded, frozen=frozen)

    @property
    def task_words(self) -> tuple[str, tuple[str, ...]]:
        """What is told apart or measured, in the plural, and their names."""
        asked = self.settings.task
        kind = "classification" if asked is None else asked.kind
        return _TOLD[kind], self.data.splits.names

    def datasets(self) -> tuple[ImageDataset | Samples, ImageDataset | Samples]:
        """Training samples with the augmentation asked for, validation samples without."""
        return material.datasets(self.data, self.settings, self.loaded)


def prepare(
    settings: RunSettings,
    *,
    weights: str = "",
    start: Start | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Read the data, build the model, load its weights, put the head, freeze.

    What is quick to check is checked first, so that a mistake shows before any long work.

    Args:
        weights: what to build the base of an earlier run from, if not from what its settings say.
        start: weights of another run to begin with.
        progress: called with (done, total) while the pictures are checked.

    Raises:
        DataError, ModelError, WeightsError, SelectorError, FreezeError, ConfigError: what was
            asked cannot be done; nothing was written.
    """
    data = settings.data
    Augment.parse(data.augment)
    check_settings(settings)
    splits, mapping = material.read(settings), ""
    classes = splits.classes
    if start is not None and settings.model.on == "keep":
        check_kept(start, classes)
        classes = start.classes
    asked = settings.task
    if start is not None and asked is not None and splits.names != start.classes:
        asked = asked.model_copy(update={"mean": (), "std": ()})  # of other targets
    task = task_for(asked, splits.names, classes)
    loaded, frozen = build(settings, task, weights=weights, start=start)
    if settings.model.on == "keep" and classes:
        is_known = start is not None or classes == data.classes
        order = classes if is_known else own_order(classes, loaded.classes)
        splits = material.ordered(splits, settings, order)
        task = task_for(settings.task, order, order)
        mapping = mapping_words(order, loaded.classes)
    found = material.audited(splits, settings, loaded, progress)
    found = start.audited(found) if start else found
    completed = _completed(settings, loaded, found)
    if weights:
        completed = completed.model_copy(update={"model": settings.model})
    return Prepared(completed, loaded, found, frozen, task, start, mapping)


def task_for(asked: TaskSettings | None, labels: Sequence[str], classes: Sequence[str]) -> Task:
    """The task of data whose labels or classes are known."""
    if asked is None or asked.kind == "classification":
        return Classification(classes)
    cuts = () if asked.chosen else asked.thresholds  # which are chosen anew
    return task_from(asked.model_copy(update={"labels": tuple(labels), "thresholds": cuts}))


def build(
    settings: RunSettings,
    task: Task,
    *,
    phase: int = 0,
    weights: str = "",
    start: Start | None = None,
) -> tuple[LoadedModel, Frozen]:
    """The model of `settings` with its weights and a head for `task`, frozen as asked.

    That is by the settings' selector or as in a phase; by default everything but the head.

    Args:
        phase: of the settings' plan, from 0.
        weights, start: as for `prepare`.

    Raises:
        ModelError, WeightsError: as `load_model`, or the start is another model's.
        SelectorError, FreezeError: the selector does not fit the model, or leaves nothing.
        ConfigError: two things to freeze or train by are given.
    """
    model = settings.model
    loaded = load_model(
        model.name,
        weights=weights or model.weights,
        classes=task.width,
        hidden=model.hidden,
        on=model.on,
        seed=settings.training.seed,
        dropout=model.dropout,
        tokens=isinstance(task, Tokens),
        clamped=isinstance(task, Classification),
    )
    if start is not None:
        start.put(loaded, material.names_of(task))
    # As it was then: an own file, a later library or a file of weights may come with another one.
    prepared = _shortened(settings.preprocessing or loaded.preprocessing, settings)
    loaded = replace(loaded, preprocessing=prepared)
    frozen = frozen_as_asked(loaded, settings, phase=phase)
    if model.dropout is not None and not set_dropout(loaded.model, model.dropout):
        raise ConfigError(
            f"{loaded.spec} has no dropout that is not frozen. Leave out {option('dropout')}, or "
            f"give the head hidden layers, which have it behind each: {option('head', 100)}."
        )
    return loaded, frozen


def frozen_as_asked(loaded: LoadedModel, settings: RunSettings, *, phase: int = 0) -> Frozen:
    """Freeze a model with its head by the settings, or as in a phase of their plan.

    Raises:
        SelectorError, FreezeError: the selector does not fit the model, or leaves nothing, or a
            new head would never train.
        ConfigError: two things to freeze or train by are given.
    """
    frozen = _freeze_as_asked(loaded, settings, phase)
    if settings.model.on != "keep":
        _check_head_trains(loaded, settings)
    return frozen


def _shortened(
    given: Preprocessing | TextPreprocessing, settings: RunSettings
) -> Preprocessing | TextPreprocessing:
    """Of texts with as many tokens as were asked for, where the model takes so many."""
    most = settings.data.max_tokens
    if most is None:
        return given
    if not isinstance(given, TextPreprocessing):
        raise ConfigError(f"pictures have no tokens. Leave out {option('max_tokens')}.")
    if most > given.max_length:
        raise ConfigError(
            f"asked for {most} tokens of a text, and the model takes {given.max_length}. Use "
            f"{option('max_tokens', given.max_length)} or fewer."
        )
    return replace(given, max_length=most)


def _check_head_trains(loaded: LoadedModel, settings: RunSettings) -> None:
    head = dict(loaded.model.get_submodule(loaded.head).named_parameters(prefix=loaded.head))
    later = set(survey(loaded.model, settings.plan).trained_until(len(settings.plan)))
    if not any(p.requires_grad or name in later for name, p in head.items()):
        raise FreezeError(
            f"the new head at {loaded.head} would stay frozen at its random start. Train it too: "
            f"{option('train', f'... | {loaded.head}')}, or leave it out of {option('freeze')}."
        )


def _freeze_as_asked(loaded: LoadedModel, settings: RunSettings, phase: int) -> Frozen:
    asked = settings.freeze
    if settings.plan:
        first = settings.plan[0]
        if asked != FreezeSettings() and first.names_part:
            raise ConfigError(
                f"got a plan and {option('freeze')}, {option('train')} or {option('norm')} beside "
                "it. Write them into its phases."
            )
        _freeze_as_asked(loaded, settings.model_copy(update={"plan": ()}), 0)
        return freeze_for(loaded.model, settings.plan, phase)
    if asked.freeze is not None and asked.train is not None:
        raise ConfigError(
            f"got both {option('freeze')} and {option('train')}. Give one; the other is the rest."
        )
    if asked.freeze is not None:
        return freeze(loaded.model, asked.freeze, norm=asked.norm)
    if asked.train is not None:
        return train_only(loaded.model, asked.train, norm=asked.norm)
    return train_only(loaded.model, path(loaded.head), norm=asked.norm)


def _completed(settings: RunSettings, loaded: LoadedModel, found: Audited) -> RunSettings:
    """With what was found, and files by absolute paths, so that any folder will do."""
    data: dict[str, object] = {
        "path": _absolute(settings.data.path),
        "classes": found.splits.classes,
        "levels": found.levels,
    }
    if isinstance(found.splits, TextSplits):
        columns = found.splits.columns
        data |= {"text_column": columns.text, "label_column": columns.label or "label"}
    else:
        target = next((sample.target for sample in found.splits.train.samples), None)
        if isinstance(target, MaskFile):
            data |= {"black_and_white": target.is_black_and_white}
    return settings.model_copy(
        update={
            "model": lasting(settings.model, loaded),
            "data": settings.data.model_copy(update=data),
            "preprocessing": loaded.preprocessing,
        }
    )


def lasting(model: ModelSettings, loaded: LoadedModel) -> ModelSettings:
    """With the head that was put and the weights that were loaded, by absolute paths."""
    digest, weights = loaded.weights.digest, model.weights
    found = {
        "name": _lasting_name(loaded.spec),
        "head": loaded.head,
        "weights": _absolute(weights) if digest else weights,
        "weights_digest": digest,
    }
    return model.model_copy(update=found)


def _lasting_name(spec: ModelSpec) -> str:
    """The model's name, which means the same in any folder."""
    if spec.source == "file":
        return f"{_absolute(spec.path)}:{spec.name}"
    is_folder = spec.source == "hf" and Path(spec.name).expanduser().is_dir()
    return f"hf:{_absolute(spec.name)}" if is_folder else str(spec)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _is_of_own_forward(error: BaseException, loaded: LoadedModel) -> bool:
    """Whether the error passed through the forward of a model from the user's own file."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return loaded.spec.source == "file" and any(
        frame.f_code.co_name == "forward" and frame.f_locals.get("self") is loaded.model
        for frame in frames
    )


def _own_error(error: BaseException, loaded: LoadedModel) -> ModelError:
    file = Path(_absolute(loaded.spec.path))
    made = loaded.of_pictures
    shape = ", ".join(map(str, ("batch", made.channels, *made.crop)))
    return ModelError(
        f"{loaded.spec}: the model's own forward failed{line_in(file, error)} on pictures of shape "
        f"({shape}): {one_line(error)}. Make its layers fit that shape, or let the function return "
        "(model, Preprocessing) with the size and channels that they take."
    )


@final
@dataclass(frozen=True)
class _Noting(Hook):
    """Notes at the start which pictures the run sees."""

    prepared: Prepared
    folder: RunFolder
    trained_on: tuple[str, ...]
    validated_on: tuple[str, ...]
    notes: DataNotes

    def on_start(self, training: Training) -> None:
        start, classes = self.prepared.start, self.prepared.data.splits.names
        if start is not None and not self.folder.start.exists():
            start.keep(training.model, classes, self.folder)
        self.folder.write_data(self.trained_on, self.validated_on)
        with suppress(OutputError):  # for the report alone
            write_data_notes(self.notes, self.folder.data)
