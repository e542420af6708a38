"""A run -> one file with merged weights, classes and preprocessing, checked before it is there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from frostline._files import check_new, replacing
from frostline.choices import EXPORT_TOLERANCE, ExportFormat
from frostline.data import Batch, ImageSet, read_files
from frostline.deltas import read_delta
from frostline.devices import Compute
from frostline.engine import Hook, predict
from frostline.errors import ConfigError, DataError, OutputError
from frostline.exports.formats import FORMATS, Format
from frostline.exports.merging import scaling
from frostline.exports.notes import Checked, Head, Notes
from frostline.exports.opened import ExportedModel, optional
from frostline.models import ModelSpec
from frostline.preprocessing import Preprocessing
from frostline.records import read_judged
from frostline.runs.finished import FinishedRun, files_as_set
from frostline.runs.pictures import splits_of
from frostline.tasks import Predictions
from frostline.wording import either, option

_NOISY = 3  # another number than that of the example
_MOST_PICTURES = 1000  # of the validation data; a larger check takes minutes and finds no more


@final
@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written.

    Attributes:
        checked: how it compares with the run in float32.
        recorded: on how many pictures it has the class that the run recorded when it was judged,
            in the form in which its frozen part was computed and its pictures were decoded then,
            while the file's are decoded in full; and on how many of those checked the run did.
    """

    file: Path
    checked: Checked
    recorded: tuple[int, int]


def export(
    run: FinishedRun,
    to: ExportFormat,
    out: Path,
    *,
    fold: bool = False,
    pictures: Sequence[Path] = (),
    tolerance: float = EXPORT_TOLERANCE,
    hooks: Iterable[Hook] = (),
) -> Exported:
    """Write the best epoch of `run` as one new file, if it computes what the run does.

    Args:
        fold: multiply batch norms into the layers before them.
        pictures: to compare on; by default the run's validation pictures, as far as they are where
            they were, else noise.
        tolerance: how far any output may differ, as a share of the largest, or of 1.

    Raises:
        ConfigError: the format cannot be written as asked; see `check_export`.
        OutputError: the outputs differ by more, or the file cannot be written.
        ModelError: torch.export cannot follow the model.
        ImageError: one of `pictures` cannot be read.
        ConfigError, WeightsError, DeltaError, DriftError: as `FinishedRun.loaded`.
    """
    check_export(to, out, fold=fold)
    task, is_text = run.settings.task, run.settings.data.is_text
    if task is not None or is_text:
        says = scaling(run.settings)
        learnt = f"learnt the task {task.kind}" if task else "classifies texts"
        raise ConfigError(
            f"{run.folder.root} {learnt}, and what is exported are classifiers of pictures. Use "
            + either("the model itself: fl.open_run(path).loaded.model.", "`frostline merge`.")
            + (f" {says}" if says else "")
        )
    form, loaded, hooks = FORMATS[to], run.loaded, tuple(hooks)
    model, prepared = loaded.model.cpu(), loaded.of_pictures
    notes = Notes(
        _name(loaded.spec, form),
        Head(run.settings.model.on, run.settings.model.hidden),
        run.settings.data.classes,
        prepared,
        str(read_delta(run.folder.best).base),
        levels=run.levels,
        folded=fold,
    )
    shown = _pictures(run, pictures)
    write = form.prepare(model, torch.zeros(2, prepared.channels, *prepared.crop), fold)
    with replacing(out) as temporary:
        write(temporary, notes.texts())
        opened = ExportedModel(*form.read(temporary))
        given = opened.batches(shown.images) if shown.images else _noise(prepared)
        found = opened.outputs(given, hooks)
        checked = _compare(predict(model, given, Compute("cpu"), hooks=hooks), found, shown.which)
        if not checked.is_within(tolerance):
            raise OutputError(
                f"{out} was not written: {checked}, and {tolerance:.1e} of the largest output is "
                f"allowed. Use another format, or allow more by {option('tolerance')}."
            )
        write(temporary, replace(notes, checked=checked).texts())
    return Exported(out, checked, _as_recorded(run, found, shown))


def check_export(to: ExportFormat, out: Path, *, fold: bool) -> None:
    """Make sure that such a file can be written, before anything is read for it.

    Raises:
        ConfigError: the format cannot be folded, or what writes it is not installed.
        OutputError: there is something at `out`.
    """
    check_fold(to, fold=fold)
    for package in FORMATS[to].needs:
        optional(package)
    check_new(out)


def check_fold(to: ExportFormat, *, fold: bool) -> None:
    """Refuse to fold norms in a format that has the model's own layers.

    Raises:
        ConfigError: see above.
    """
    if fold and not FORMATS[to].folds:
        raise ConfigError(
            f"{to} holds the model's own layers, so none can be folded away. "
            f"Leave out {option('fold', True)}, or use {option('to', 'pt2')} or "
            f"{option('to', 'onnx')}."
        )


def _compare(run: Predictions, file: Predictions, which: str) -> Checked:
    before, now = run.outputs, file.outputs
    return Checked(
        float((now - before).abs().max()),
        float(before.abs().max()),
        len(before),
        int((now.argmax(1) == before.argmax(1)).sum()),
        which,
    )


def _name(spec: ModelSpec, form: Format) -> str:
    """Without the folder of one's own code where that is not needed any more."""
    return str(replace(spec, path=Path(spec.path).name)) if form.has_graph else str(spec)


@final
@dataclass(frozen=True, slots=True)
class _Shown:
    """Pictures to compare on: none for noise; and what they are, for people."""

    which: str
    images: ImageSet | None = None
    digests: tuple[str, ...] = ()


def _pictures(run: FinishedRun, given: Sequence[Path]) -> _Shown:
    classes, known = run.settings.data.classes, set(run.folder.read_validated_on())
    if given:
        digests, broken, _ = read_files(given, levels=run.levels)
        for error in broken.values():
            raise error
        files = list(given)
        which = f"the {len(files)} pictures given"
    else:
        digests = _validation_files(run)
        files = [file for file, digest in digests.items() if digest in known]
        which = f"{len(files)} of {len(known)} validation pictures"
    if files:
        found = tuple(digests[file] for file in files)
        return _Shown(which, files_as_set(files, classes), found)
    others = f"{option('pictures')} gives others"
    return _Shown(f"noise, since the validation pictures are gone ({others})")


def _validation_files(run: FinishedRun) -> dict[Path, str]:
    """Files where the validation pictures were, evenly spread, and the digests of their content."""
    try:
        files = [sample.path for sample in splits_of(run.settings).val.samples]
    except DataError:
        return {}
    step = math.ceil(len(files) / _MOST_PICTURES) or 1
    return read_files(files[::step], levels=run.levels).digests


def _as_recorded(run: FinishedRun, found: Predictions, shown: _Shown) -> tuple[int, int]:
    """By content, since the folder may be called otherwise now."""
    known = dict[str, int]()
    with suppress(ConfigError):  # a run of before has no such record
        judged = read_judged(run.folder.predictions)
        known = dict(zip(run.folder.read_validated_on(), judged.predicted.tolist(), strict=False))
    now = zip(shown.digests, found.outputs.argmax(1).tolist(), strict=False)
    same = [known[digest] == label for digest, label in now if digest in known]
    return sum(same), len(same)


def _noise(preprocessing: Preprocessing) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(_NOISY, preprocessing.channels, *preprocessing.crop, generator=draw)
    mean, std = (
        torch.tensor(part).view(-1, 1, 1) for part in (preprocessing.mean, preprocessing.std)
    )
    labels = torch.zeros(_NOISY, dtype=torch.int64)
    return [Batch((values - mean) / std, labels, ("noise",) * _NOISY)]
