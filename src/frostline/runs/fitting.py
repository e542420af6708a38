"""`fl.fit`: train what is trainable, keep the best, prove that the rest did not move."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline._files import write_text
from frostline.callbacks.logs import MetricsLog, TensorBoardLog
from frostline.callbacks.saving import Saver
from frostline.config import DataSettings, FeatureSettings, ModelSettings, RunSettings
from frostline.data import Batch, Batches, ImageDataset, make_batches
from frostline.devices import resolve_device
from frostline.engine import EpochRecord, Hook, Predictions, check_targets, predict
from frostline.engine import train as run_epochs
from frostline.errors import ConfigError, DataError, DriftError, ModelError, TrainingError
from frostline.fingerprints import fingerprint
from frostline.folder import RunFolder
from frostline.freezing import Frozen, Proof, frozen_part
from frostline.groups import param_groups
from frostline.recipe import Recipe, recipe_of
from frostline.runs.feeding import CHECKED_SAMPLES, Feed, Wanted, feed, few_of


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
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best: EpochRecord
    proof: Proof
    folder: RunFolder | None
    says: tuple[str, ...] = ()
    computed: int = 0


def fit(
    model: nn.Module,
    train: object,
    val: object,
    *,
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    batch_size: int = 32,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    features: str | Path = "auto",
    compile: bool = False,  # noqa: A002 - the field's word
    hooks: Iterable[Hook] = (),
    settings: RunSettings | None = None,
    **options: object,
) -> Run:
    """Train the trainable part of `model` with cross-entropy; the frozen part stays as it is.

    Freeze first (`fl.freeze`, `fl.train_only`); parameters with `requires_grad=False` set by hand
    are frozen fully. Each epoch trains in train mode and validates in eval mode without
    gradients. At the end the model holds the best epoch's weights and the frozen part is verified.

    What lies below the frost line is computed once for each sample, in the fastest form that is
    faithful, and kept in a feature store; the epochs train from there. With `precision="exact"`
    the figures are those of the plain loop (`features="off"`).

    Args:
        train: dataset of (input, class index), or an iterable of batches of these.
        val: the same; never trained on.
        out: a new folder for deltas, metrics and settings; nothing is kept if `None`.
        recipe: how to train; or name its options here: `epochs=5, lr=1e-3, patience=3`.
        classes: names of the classes; by default `train.classes`, else their numbers.
        resume: go on with the run in `out` after its last whole epoch.
        features: folder of the feature store; `auto` is one in the user's cache folder, `off` is
            the plain loop.
        compile: compile what is trained with `torch.compile`.
        hooks: called by the loop, besides those that save and log.

    Raises:
        ConfigError: an option is unknown or out of range, or the run to resume is another one.
        FreezeError: nothing is trainable.
        DataError: labels do not fit the classes, or there is no data.
        ModelError: the model does not give one logit for each class.
        OutputError: `out` exists or cannot be written.
        TrainingError: the loss is not finite, or a batch does not go through.
        DriftError: something frozen moved; what was trained is kept in `out`.
    """
    recipe, hooks = _recipe(recipe, options), tuple(hooks)
    settings = settings or _settings(model, recipe, batch_size, device, features, compile)
    batches = make_batches(train, batch_size=batch_size, shuffle=True, seed=recipe.seed)
    validation = make_batches(val, batch_size=batch_size, shuffle=False, seed=recipe.seed)
    param_groups(model, lr=1.0)  # refuses early when nothing is trainable
    if settings.features.compile:
        _check_compiler(device)
    first = _FirstSamples.of(
        model, val, validation, device=device, timed=settings.features.store == "auto"
    )
    names = _class_names(first.found, train, classes)
    weights = _class_weights(recipe, train, len(names))
    with _folder(out, resume=resume) as folder:
        frozen = frozen_part(model)
        wanted = Wanted(
            settings.features,
            recipe,
            batch_size,
            resolve_device(device),
            form=_form_before(folder) if resume else "",
            seconds_per_sample=first.seconds,
            hooks=hooks,
        )
        fed = feed(model, first.inputs, (train, val), (batches, validation), wanted)
        settings = _completed(settings, names, fed)
        _begin(folder, settings, frozen, resume=resume)
        about = {"model": settings.model.name, "weights": settings.model.weights}
        saver = Saver(folder, fingerprint(model) if folder else None, about, resume=resume)
        logs = (MetricsLog(folder.metrics), TensorBoardLog(folder.tensorboard)) if folder else ()
        for hook in hooks:
            for line in fed.says:
                hook.on_notice(line)
        training = run_epochs(
            model,
            fed.train,
            fed.validation,
            recipe=recipe,
            classes=names,
            device=device,
            class_weights=weights,
            forward=torch.compile(fed.forward) if settings.features.compile else fed.forward,
            hooks=(saver, *logs, *hooks),
        )
        proof = frozen.verify()
        if not training.best_epoch:
            raise TrainingError(
                f"the validation {recipe.monitor} was never a number, so no epoch is the best. "
                "Look at the metrics; lower the learning rate (--lr)."
            )
        saver.put_best(model)
        best = training.history[training.best_epoch - 1]
        if folder:
            _write_result(folder, best, proof)
        history = tuple(training.history)
        return Run(model, history, best, proof, folder, fed.says, fed.computed)


def _recipe(recipe: Recipe | None, options: dict[str, object]) -> Recipe:
    if recipe is None:
        return recipe_of(**options)
    if options:
        raise ConfigError(
            f"got a recipe and {', '.join(options)} beside it. Put all into one of the two."
        )
    return recipe


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
    compile_suffix: bool,
) -> RunSettings:
    return RunSettings(
        model=ModelSettings.from_python(type(model).__name__),
        data=DataSettings(batch_size=batch_size),
        training=recipe,
        features=FeatureSettings(store=str(features), compile=compile_suffix),
        device=device,
    )


def _completed(settings: RunSettings, names: Sequence[str], fed: Feed) -> RunSettings:
    """With what was found: the classes, and the form of the frozen part."""
    data = settings.data.model_copy(update={"classes": tuple(names)})
    features = settings.features.model_copy(update={"form": fed.form})
    return settings.model_copy(update={"data": data, "features": features})


@contextmanager
def _folder(out: str | Path | None, *, resume: bool) -> Iterator[RunFolder | None]:
    if out is None:
        if resume:
            raise ConfigError("resume needs the run's folder. Give it as out=...")
        yield None
        return
    folder = RunFolder(Path(out))
    if resume:
        folder.check_is_run()
    else:
        folder.check_free()
    yield folder


def _form_before(folder: RunFolder | None) -> str:
    """The form in which the run to be resumed computes its frozen part."""
    return RunSettings.read(folder.settings).features.form if folder else ""


def _begin(
    folder: RunFolder | None, settings: RunSettings, frozen: Frozen, *, resume: bool
) -> None:
    """Write down settings and frozen part; or make sure that a resumed run has the same."""
    if folder is None:
        return
    if not resume:
        folder.write_frozen(frozen.fingerprint)
        settings.write(folder.settings)
        return
    check_same_settings(RunSettings.read(folder.settings), settings)
    before = folder.read_frozen()
    if before != frozen.fingerprint:
        moved = [n for n, d in before.tensors.items() if frozen.fingerprint.tensors.get(n) != d]
        raise DriftError(
            f"cannot resume: the frozen part is not what {folder.root} started with; "
            f"{len(moved)} tensors differ, first {', '.join(moved[:3]) or 'in what is frozen'}. "
            "Give the same weights, model and selector."
        )


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
    if differing:
        raise ConfigError(
            f"cannot resume with other settings: {'; '.join(differing)}. Leave them as they were, "
            "or start a new run with another --out."
        )


def _sections(a: RunSettings, b: RunSettings) -> dict[str, tuple[dict[str, object], ...]]:
    one, other = a.model_dump(), b.model_dump()
    return {key: (one[key], other[key]) for key in ("model", "data", "freeze", "training")}


def _class_names(
    first: Predictions, train_data: object, classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes' names, after a few samples have shown that the model gives a logit for each."""
    count = first.logits.shape[1] if first.logits.dim() == 2 else 0
    given = classes if classes is not None else getattr(train_data, "classes", None)
    names = tuple(map(str, given)) if given is not None else tuple(map(str, range(count)))
    if count != len(names) or first.logits.dim() != 2:
        raise ModelError(
            f"the model gives logits of shape {tuple(first.logits.shape)} for "
            f"{len(first.targets)} samples, but there are {len(names)} classes. Put a head on it "
            "that gives (batch, classes)."
        )
    if count < 2:
        raise DataError(
            "there is one class, so nothing to tell apart. Give at least two, with a logit for "
            "each."
        )
    check_targets(first.targets, len(names), first.names)
    return names


@final
@dataclass(frozen=True)
class _FirstSamples:
    """A few validation samples, what the model makes of them, and how long it takes for one."""

    inputs: Any
    found: Predictions
    seconds: float

    @classmethod
    def of(
        cls, model: nn.Module, data: object, whole: Batches, *, device: str, timed: bool
    ) -> _FirstSamples:
        """Look at them; `timed` makes a second pass, since the first one also warms up."""
        if isinstance(data, ImageDataset):  # do not decode whole batches for a few
            few_of_them = [data[i] for i in range(min(CHECKED_SAMPLES, len(data)))]
            inputs, labels = zip(*few_of_them, strict=True)
            batch = Batch(torch.stack(inputs), torch.tensor(labels), data.names[: len(labels)])
        else:
            with closing(whole.epoch(0)) as batches:
                batch = next(batches)
        few = few_of(batch.inputs, resolve_device(device))
        count = min(CHECKED_SAMPLES, len(batch.targets))
        small = _OneBatch(Batch(few, batch.targets[:count], batch.names[:count]))
        start = time.perf_counter()
        found = predict(model, small, device=device)
        seconds = time.perf_counter() - start
        if timed:
            start = time.perf_counter()
            predict(model, small, device=device)
            seconds = min(seconds, time.perf_counter() - start)
        return cls(few, found, seconds / count)


@final
@dataclass(frozen=True)
class _OneBatch:
    """A single batch."""

    batch: Batch

    def __len__(self) -> int:
        return 1

    @property
    def samples(self) -> int:
        return len(self.batch.targets)

    def epoch(self, epoch: int, /) -> Generator[Batch, None, None]:  # noqa: ARG002
        yield self.batch


def _class_weights(recipe: Recipe, data: object, count: int) -> Tensor | None:
    """Inverse class frequencies, scaled so that their mean over the samples is 1."""
    if recipe.class_weights == "none":
        return None
    if not isinstance(data, ImageDataset):
        raise ConfigError(
            "class_weights='balanced' counts the labels of an image set; this data is of another "
            "kind. Give class_weights='none', or weigh in a loss of your own."
        )
    counts = torch.bincount(torch.tensor(data.labels), minlength=count).clamp(min=1)
    return len(data) / (count * counts.float())


def _write_result(folder: RunFolder, best: EpochRecord, proof: Proof) -> None:
    result = {
        "epoch": best.epoch,
        **best.validation.as_dict(),
        "frozen": {
            "tensors": proof.tensors,
            "bytes": proof.nbytes,
            "fingerprint": str(proof.fingerprint),
        },
    }
    write_text(folder.result, json.dumps(result, indent=1))
