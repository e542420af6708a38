"""A finished run, opened again: evaluate it, predict with it, prove what it promised."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from frostline.config import RunSettings
from frostline.data import (
    FilesRead,
    ImageDataset,
    ImageSet,
    Levels,
    Sample,
    Splits,
    TextSet,
    class_targets,
    make_batches,
    read_files,
    run_notes,
    text_samples,
    without,
)
from frostline.deltas import Delta, all_tensors, load_delta, read_delta
from frostline.devices import Compute
from frostline.engine import Hook, predict, summarised
from frostline.errors import ConfigError, DataError, DriftError, WeightsError, a_type
from frostline.fingerprints import Fingerprint
from frostline.freezing import not_covered_text
from frostline.models import LoadedModel
from frostline.models.spec import WEIGHT_SUFFIXES, file_and_place
from frostline.models.state_files import weights_digest
from frostline.preprocessing import Text, Words
from frostline.records import BY_MODEL, RunFolder, judged_by
from frostline.reports import Judgement, RunReport, make_report, promise_of
from frostline.runs import material, texts
from frostline.runs.material import Part
from frostline.runs.preparing import build
from frostline.runs.starting import Start, settings_of_start
from frostline.session import Survey, prefixed, survey
from frostline.tasks import Classification, Metrics, Predictions, Segmentation, Task, Tokens
from frostline.tuning import Form
from frostline.units import some_of
from frostline.wording import either, option
from frostline.world import ALONE, World

_MASKS_AT_ONCE = 64
_some = partial(some_of, most=5)  # names of tensors in a message


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run says of one picture.

    Attributes:
        answer: in plain values by name, as the run's task answers: a class and its probability,
            labels, numbers, the share of each class in a mask.
        classes: the most probable classes, best first, with their probabilities; of a classifier.
        mask: the class of each pixel, uint8 `(height, width)`; of a segmentation.
    """

    file: str
    answer: Mapping[str, object]
    classes: tuple[tuple[str, float], ...] = ()
    mask: Tensor | None = None


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What was proven about a finished run, and by name what of it no file shows."""

    tensors: int
    fingerprint: Fingerprint
    checks: tuple[str, ...]
    not_covered: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pictures or texts to evaluate on.

    Attributes:
        samples: those that can be read.
        notes: what to know: which were left out, how many the run was trained on.
        data: where they were found.
        digests: of the content of each.
    """

    samples: Part
    notes: tuple[str, ...]
    data: Path
    digests: tuple[str, ...]


@final
@dataclass(frozen=True)
class FinishedRun:
    """A run folder that has been trained, at least for a while.

    Attributes:
        folder: its files.
        settings: what it was trained with.
        weights: a file of the base's weights, where it is not to be looked for.
    """

    folder: RunFolder
    settings: RunSettings
    weights: str = ""

    def __repr__(self) -> str:
        return f"<FinishedRun of {self.settings.model.name} in {self.folder.root}>"

    @property
    def batch_size(self) -> int:
        """Pictures that are predicted together."""
        return self.settings.data.batch_size

    @property
    def levels(self) -> Levels | None:
        """What becomes black and white in pictures of more than 8 bits; see `open_image`."""
        return self.settings.data.levels

    @cached_property
    def task(self) -> Task:
        """What the run learnt.

        Raises:
            ConfigError: it was a task of one's own.
        """
        found = self.settings.as_task()
        if found is None:
            raise ConfigError(
                f"{self.folder.root} was trained on a task of one's own, which no file can make "
                "again. The metrics of its validation data: "
                + either(
                    f"fl.open_run({str(self.folder.root)!r}).report()",
                    f"frostline report {self.folder.root}",
                )
            )
        return found

    @property
    def has_masks(self) -> bool:
        """Whether a prediction is a mask."""
        return isinstance(self.task, Segmentation)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model with the best epoch's weights, in eval mode, frozen as it was.

        Raises:
            ConfigError: the model was handed over as a Python object.
            WeightsError: the base's weights are not where they were.
            DeltaError: there is no delta, or it does not belong to this base.
            DriftError: the delta is not that of this run: it lacks what was trained, or holds
                what was to stay frozen.
        """
        delta = read_delta(self.folder.best)
        loaded = self.built_for(delta)
        planned = survey(loaded.model, self.settings.plan)
        _check_trained(delta, planned, self.folder.best)
        _check_left_out(delta, planned.untouched, self.folder.best)
        load_delta(loaded.model, self.folder.best)
        loaded.model.eval()
        return loaded

    def evaluate(
        self,
        samples: Part,
        *,
        device: str = "auto",
        hooks: Iterable[Hook] = (),
        world: World = ALONE,
    ) -> Metrics:
        """Metrics on `samples`, as `held_out` gives them.

        Args:
            world: the processes that share the samples; all of them call this.

        Raises:
            ConfigError, WeightsError, DeltaError, DriftError: as `loaded`.
        """
        found = self._predictions(samples, device, hooks, world, keep="summary")
        return summarised(self.task, found)

    def judge(
        self,
        held: HeldOut,
        *,
        device: str = "auto",
        hooks: Iterable[Hook] = (),
        world: World = ALONE,
    ) -> Judgement:
        """Metrics on `held`, and what each picture was taken for.

        `.save_table(path)` writes a CSV with a row for each picture, `.save(path)` a page.

        Raises:
            ConfigError, WeightsError, DeltaError, DriftError: as `loaded`.
        """
        found = self._predictions(held.samples, device, hooks, world, keep="summary")
        epoch = int(read_delta(self.folder.best).about.get("epoch", "0"))
        judged = judged_by(self.task, found, epoch=epoch)
        return Judgement(
            self.folder.root,
            self.settings.data,
            held.data,
            held.digests,
            held.notes,
            summarised(self.task, found),
            judged,
        )

    def predict(
        self,
        samples: Sequence[Path] | Sequence[Text] | Sequence[Sequence[str]],
        *,
        top: int = 1,
        device: str = "auto",
        hooks: Iterable[Hook] = (),
        world: World = ALONE,
    ) -> list[Prediction]:
        """What the run says of each picture or text; all pictures must be readable.

        Args:
            samples: files of pictures; or texts, of a run that learnt from texts. Of one that
                tags words each is a list of words, or a text with blanks between them.
            top: how many of the most probable classes, where there are classes.
            world: the processes that share the samples; all of them call this, and have all
                predictions.

        Raises:
            ConfigError, WeightsError, DeltaError, DriftError: as `loaded`.
            ImageError: a file is no picture.
        """
        if self.settings.data.is_text:
            given = _as_texts(
                samples,
                in_words=isinstance(self.task, Tokens),
                in_pairs="+" in self.settings.data.text_column,
            )
            found = self._predictions(given, device, hooks, world, labelled=False)
            if isinstance(self.task, Tokens):
                return _tagged(self.task, found, given.texts)
            return predictions_of(self.task, found, top=top)
        files = [Path(str(file)) for file in samples]
        # Of masks a few pictures at a time: each has a number for each class and pixel.
        step = _MASKS_AT_ONCE if isinstance(self.task, Segmentation) else len(files)
        size = self.loaded.of_pictures.crop
        answers: list[Prediction] = []
        for start in range(0, len(files), max(1, step)):
            few = files_as_set(files[start : start + step], self.task.classes)
            found = self._predictions(few, device, hooks, world, labelled=False)
            answers += predictions_of(self.task, found, top=top, size=size)
        return answers

    def _predictions(
        self,
        samples: Part,
        device: str,
        hooks: Iterable[Hook],
        world: World,
        *,
        keep: Literal["outputs", "summary"] = "outputs",
        labelled: bool = True,
    ) -> Predictions:
        """By the frozen part in the form that the run was trained and judged with."""
        settings = self.settings
        data = material.dataset(samples, settings, self.loaded, self.task, labelled=labelled)
        phase, forms = _phase_of(read_delta(self.folder.best)), settings.features.forms
        form = forms[phase] if phase < len(forms) else ""
        if isinstance(data, ImageDataset) and form not in ("", BY_MODEL):
            data = replace(data, decoding=Form.parse(form).decoding)
        has_targets = labelled or isinstance(self.task, Tokens)  # which hold the words' numbers
        as_targets = self.task.targets if has_targets else class_targets
        batches = make_batches(
            data,
            batch_size=self.batch_size,
            shuffle=False,
            seed=0,
            as_targets=as_targets,
            world=world,
        )
        compute = Compute(device, settings.training.mixed)
        model = self.loaded.model.to(compute.device)
        given, forward = prefixed(model, batches, form, compute.device)
        return predict(
            model,
            given,
            compute,
            forward=forward,
            hooks=tuple(hooks),
            task=self.task,
            keep=keep,
            world=world,
        )

    def held_out(
        self, data: Path, *, progress: Callable[[int, int], None] | None = None, **columns: str
    ) -> HeldOut:
        """Pictures or texts of `data` that the run may be judged on.

        The data that the run itself divided give the part that it held out; any other data set
        gives its test/ or val/ part, or all of it where it is not divided.

        Args:
            columns: `file_column`, `text_column`, `label_column` and `split_column` of a table,
                where they are not those of the run.

        Raises:
            DataError: there is no such data, a class is unknown to the run, or nothing is left.
        """
        own, found = self.settings.data, None
        if own.path and data.resolve() == Path(own.path).resolve():
            part, found = self._own_held_out(progress)
        else:
            part = material.held_out_set(self.settings, data, **columns)
        if isinstance(part, TextSet):
            named = (f"left out, since it is empty: {name}" for name in part.empty)
            notes = [*named, *self._words_left_out(part)]
            return self._held(part, data, texts.contents_of(part), notes)
        files = dict.fromkeys(sample.path for sample in part.samples)
        found = found or read_files(files, levels=self.levels, progress=progress)
        digests = {file: found.digests[file] for file in files if file in found.digests}
        part = replace(part, samples=tuple(s for s in part.samples if s.path in digests))
        if not part.samples:
            raise DataError(f"{data} has no picture left to evaluate on. Point at other data.")
        notes = [f"left out: {found.broken[file]}" for file in files if file in found.broken]
        notes += run_notes((found.seen[file] for file in digests), self.levels)
        kept = tuple(digests[sample.path] for sample in part.samples)
        return self._held(part, data, kept, notes)

    def _words_left_out(self, part: TextSet) -> Iterator[str]:
        """What metrics of words leave out, as these say how many there are of."""
        if part.has_words:
            samples = text_samples(part, self.loaded.of_texts, labelled=False)
            if cut := samples.truncation():
                yield cut.removesuffix(".")

    def _held(self, part: Part, data: Path, digests: tuple[str, ...], notes: list[str]) -> HeldOut:
        """With a note where the run was trained on some of them."""
        seen = {*self.folder.read_trained_on(), *self.folder.read_seen_before()}
        every, what = set(digests), "texts" if isinstance(part, TextSet) else "pictures"
        chose = len(every & set(self.folder.read_validated_on()))
        if known := len(every & seen):
            notes.append(
                f"{known} of {len(every)} {what} have the content of one that the run was "
                "trained on; the metrics are better than they would be on new data"
            )
        elif 0 < chose < len(every):
            notes.append(
                f"{chose} of {len(every)} {what} have the content of one that the run's epoch was "
                "chosen by; they are no new data"
            )
        return HeldOut(part, tuple(notes), data, digests)

    def verify(self) -> Verdict:
        """Prove that what was to stay frozen did, from the files alone.

        The base, built again from its weights, has the frozen tensors that the run started with;
        neither delta holds one of them or lacks one of the others' parameters; and each delta was
        saved beside these very tensors.

        Raises:
            DriftError: names the tensors for which it does not hold.
            ConfigError, WeightsError: the proof cannot be made; says what is missing.
            DeltaError: a delta is missing or damaged.
        """
        expected = self.folder.read_frozen()
        checks, not_covered = list[str](), tuple[str, ...]()
        for file in (self.folder.best, self.folder.last):
            delta = read_delta(file)
            _check_left_out(delta, expected, file)
            moved = [n for n, d in expected.tensors.items() if delta.base.tensors.get(n) != d]
            if moved:
                raise _drift(f"the model that {file} was saved from", moved)
            checks.append(f"{file.parent.name}/ holds no frozen tensor and was saved beside them")
        if self.settings.model.is_from_python:
            checks.append(
                "the base itself was handed over in Python: verify it with fl.fingerprint"
            )
        else:
            not_covered = self._check_base(expected)
            start = self.folder.start.name if self.settings.model.start else ""
            source = f"its weights and {start}" if start else "its weights"
            checks.append(f"the base, built again from {source}, has the same frozen tensors")
        return Verdict(len(expected.tensors), expected, tuple(checks), not_covered)

    def report(self) -> RunReport:
        """The run's report, with what `verify` finds now; `.save(path)` writes the page.

        What the folder lacks is said on the page; a broken promise stands on top of it.
        """
        return make_report(self.folder, self.settings, promise_of(self._proven))

    def _proven(self) -> tuple[str, tuple[str, ...]]:
        verdict = self.verify()
        frozen = f"{verdict.tensors} frozen tensors, {verdict.fingerprint}"
        words = frozen if verdict.tensors else "nothing was to stay frozen"
        return words + not_covered_text(verdict.not_covered), verdict.checks

    @cached_property
    def base_weights(self) -> str:
        """What the base is built from.

        That is the file given, or the base that is kept in the folder, or as it was then; a file
        that was moved beside the run is found by its content.

        Raises:
            WeightsError: the base's weights are not where they were, nor beside the run.
        """
        then, kept = self.settings.model, self.folder.base
        if self.weights or kept.is_file():
            return self.weights or str(kept)
        file, place = file_and_place(then.weights)
        if not then.weights_digest or file.is_file():
            return then.weights
        for found in _beside(self.folder, file.name):
            with suppress(WeightsError, OSError):  # an index without its files
                if weights_digest(found) == then.weights_digest:
                    return f"{found}:{place}" if place else str(found)
        raise WeightsError(
            f"the weights that {self.folder.root} was trained on are no longer at {then.weights}, "
            "and no file in the run's folder or beside it has their content. Put them back, or say "
            f"where they are: {option('weights', 'FILE')}."
        )

    @property
    def began_with(self) -> Start | None:
        """The weights of another run that this one began with, if any.

        Raises:
            ConfigError: it was stopped before it wrote them.
            DeltaError: they are damaged.
        """
        then, file = self.settings.model, self.folder.start
        if not then.start:
            return None
        if not file.exists():
            raise ConfigError(
                f"{self.folder.root} has no {file.name}, the weights of {then.start} that it began "
                "with. Restore it; if the run was stopped before its first epoch, delete its "
                "folder and start it again."
            )
        kept = read_delta(file)
        epoch = int(kept.about.get("epoch", "0"))
        seen = frozenset(self.folder.read_seen_before())
        names = material.names_of(self.task)
        return Start(then.start, epoch, names, kept.tensors, seen)

    def settings_to_begin(self, now: RunSettings, given: Collection[str]) -> RunSettings:
        """The settings of a run that begins with this one: see `settings_of_start`."""
        place = str(self.folder.root.resolve())
        changes = {"weights": self.base_weights, "start": place}
        model = self.settings.model.model_copy(update=changes)
        return settings_of_start(self.settings.model_copy(update={"model": model}), now, given)

    def as_start(self) -> Start:
        """What this run has learnt, for another one to begin with.

        Raises:
            ConfigError, WeightsError, DeltaError, DriftError: as `loaded`.
        """
        earlier, best, folder = self.began_with, read_delta(self.folder.best), self.folder
        tensors, held = all_tensors(self.loaded.model), earlier.tensors if earlier else {}
        return Start(
            str(folder.root.resolve()),
            int(best.about.get("epoch", "0")),
            material.names_of(self.task),
            {name: tensors[name].detach() for name in dict.fromkeys([*held, *best.tensors])},
            frozenset((*folder.read_trained_on(), *folder.read_seen_before())),
            frozenset(folder.read_validated_on()),
        )

    def built_for(self, delta: Delta) -> LoadedModel:
        """The base, frozen as when `delta` was saved.

        Raises:
            ConfigError, WeightsError: as `loaded`.
        """
        loaded = self._base(phase=_phase_of(delta))
        self._check_weights()
        return loaded

    def _base(self, *, phase: int = 0) -> LoadedModel:
        model = self.settings.model
        if model.is_from_python:
            raise ConfigError(
                f"{self.folder.root} was trained on a model handed over in Python "
                f"({model.name}), so the command line cannot build it. In Python: "
                f"fl.load_delta(model, '{self.folder.best}')."
            )
        weights, start = self.base_weights, self.began_with
        return build(self.settings, self.task, phase=phase, weights=weights, start=start)[0]

    def _check_weights(self) -> None:
        """The weights' file is the one that the run was trained on, byte for byte.

        Of one that lies elsewhere the delta tells, which knows the base's tensors.
        """
        model = self.settings.model
        file, _ = file_and_place(model.weights)
        is_there = model.weights_digest and self.base_weights == model.weights
        if is_there and weights_digest(file) != model.weights_digest:
            raise DriftError(
                f"{file} is not the file that {self.folder.root} was trained on: its "
                "content has changed. Restore it."
            )

    def _check_base(self, expected: Fingerprint) -> tuple[str, ...]:
        """Compare the base built again; names what of it no file shows."""
        try:
            planned = survey(self._base().model, self.settings.plan)
        except WeightsError:
            if file_and_place(self.settings.model.weights)[0].is_file():
                self._check_weights()  # says more than that a changed file cannot be read
            raise
        for file in (self.folder.best, self.folder.last):
            _check_trained(read_delta(file), planned, file)
        before, now = expected.tensors, planned.untouched.tensors
        moved = [n for n in dict.fromkeys([*before, *now]) if now.get(n) != before.get(n)]
        if moved:
            raise _drift(f"the base built again from {self.base_weights}", moved)
        self._check_weights()
        return planned.not_covered

    def _own_held_out(
        self, progress: Callable[[int, int], None] | None
    ) -> tuple[Part, FilesRead | None]:
        """The samples, and what reading all pictures found, where that was needed to divide."""
        splits, found = material.read(self.settings), None
        if isinstance(splits, Splits) and splits.division is not None:
            # It was drawn among the pictures that can be read.
            every = (s.path for part in splits.sets.values() for s in part.samples)
            found = read_files(every, levels=self.levels, progress=progress)
            splits = without(splits, found.broken)
        return splits.test or splits.val, found


def open_run(path: str | Path, *, weights: str | Path | None = None) -> FinishedRun:
    """Open a run folder.

    Args:
        weights: a file of the base's weights, where they are not where they were.

    Raises:
        ConfigError: there is no run at `path`, or its settings are damaged.

    Example:
        >>> run = fl.fit(model, data, data, epochs=2, out="run")
        >>> fl.open_run("run")
        <FinishedRun of python:Sequential in run>
    """
    folder = RunFolder(Path(path))
    folder.check_is_run()
    given = "" if weights is None else str(Path(weights).expanduser().absolute())
    return FinishedRun(folder, RunSettings.read(folder.settings), given)


def files_as_set(files: Iterable[Path], classes: tuple[str, ...]) -> ImageSet:
    """Pictures whose class is not known, to predict it."""
    return ImageSet(classes, tuple(Sample(file, 0) for file in files))


def _as_texts(samples: Sequence[object], *, in_words: bool, in_pairs: bool) -> TextSet:
    """Texts whose label is not known.

    Raises:
        DataError: there is no list of them, one is none or has no letter, or the run read pairs
            and these are single ones.
    """
    if isinstance(samples, str):
        raise DataError(f"got one text, {samples[:40]!r}. Give a list of texts.")
    found: list[Text] = []
    for one in samples:
        if not isinstance(one, str | tuple | list) or not all(isinstance(p, str) for p in one):
            raise DataError(f"{a_type(one)} is no text. The run learnt from texts: give such.")
        if isinstance(one, str) if in_pairs else not in_words and not isinstance(one, str):
            each = "pairs of texts" if in_pairs else "single texts"
            raise DataError(
                f"the run learnt from {each}, and {str(one)[:40]!r} is none. Give such."
            )
        if not "".join(one).strip():
            raise DataError(f"text {len(found) + 1} is empty. Leave it out.")
        if in_words:
            found.append(Words(one.split() if isinstance(one, str) else one))
        else:
            found.append(one if isinstance(one, str) else (str(one[0]), str(one[1])))
    count = len(found)
    return TextSet("the texts", tuple(found), ("",) * count, tuple(range(1, count + 1)), "text")


def _tagged(task: Tokens, found: Predictions, texts: Sequence[Text]) -> list[Prediction]:
    """A tag for each word; None for one that has no token, as behind the end of what is read."""
    made, taken = list[Prediction](), task.predicted(found.outputs)
    for name, text, tokens, words in zip(found.names, texts, taken, found.targets, strict=True):
        begins = words >= 0
        tags: list[str | None] = [None] * len(text)
        for word, tag in zip(words[begins].tolist(), tokens[begins[: len(tokens)]], strict=True):
            tags[word] = task.tags[int(tag)]
        made.append(Prediction(name, {"words": list(text), "tags": tags}))
    return made


def predictions_of(
    task: Task, found: Predictions, *, top: int, size: tuple[int, int] | None = None
) -> list[Prediction]:
    """What a task says of each sample, by a model's outputs.

    Args:
        size: height and width of masks.
    """
    answers = task.answers(found.outputs, top=top)
    if isinstance(task, Segmentation):
        masks = task.predicted(found.outputs, size).to(torch.uint8)
        rows = zip(found.names, answers, masks, strict=True)
        return [Prediction(name, answer, mask=mask) for name, answer, mask in rows]
    has_classes = isinstance(task, Classification)
    return [
        Prediction(name, answer, _classes(answer) if has_classes else ())
        for name, answer in zip(found.names, answers, strict=True)
    ]


def _classes(answer: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Of an answer of a classification."""
    every = answer.get("top", [answer])
    return tuple((one["class"], one["probability"]) for one in every)


def _beside(folder: RunFolder, name: str) -> Iterator[Path]:
    """Files of weights in a run's folder and in the one that it lies in; those of `name` first."""
    root, there = folder.root.absolute(), list[Path]()
    for place in (root, root.parent):
        with suppress(OSError):  # it may not be read
            there += sorted(place.iterdir())
    for file in sorted(there, key=lambda file: file.name != name):
        if (
            file.name.lower().endswith(WEIGHT_SUFFIXES)
            and file.is_file()
            and os.access(file, os.R_OK)
        ):
            yield file


def _check_left_out(delta: Delta, frozen: Fingerprint, file: Path) -> None:
    """Make sure the delta holds no tensor that was to stay frozen."""
    held = [name for name in frozen.tensors if name in delta.tensors]
    if held:
        raise _foreign(f"{file} holds tensors that were to stay frozen", held)


def _check_trained(delta: Delta, planned: Survey, file: Path) -> None:
    """Make sure the delta holds each parameter that this run trained until it was saved."""
    trained = planned.trained_until(_phase_of(delta))
    missing = [name for name in trained if name not in delta.tensors]
    if missing:
        raise _foreign(f"{file} lacks tensors that this run trained", missing)


def _phase_of(delta: Delta) -> int:
    """The phase in which the delta was saved, from 0."""
    return int(delta.about.get("phase", "1")) - 1


def _foreign(what: str, names: Sequence[str]) -> DriftError:
    return DriftError(
        f"{what}: {_some(names)}. It is another run's, or was changed; restore it from a copy, or "
        "train again.",
        names,
    )


def _drift(where: str, names: Sequence[str]) -> DriftError:
    return DriftError(
        f"{where} differs from what the run started with in {len(names)} frozen tensors: "
        f"{_some(names)}. Do not trust this run; restore its files or train again.",
        names,
    )
