"""Keeps the best and the last delta, and what is needed to go on from where the last was written.

`last/delta.safetensors` is written after the state of the same position and names it, so a run
killed at any instant has one delta with its state. Where epochs last milliseconds, writing each
would cost more than training it: the ends of the last and the best epoch are kept in memory, and
files are written at the end and, within epochs too, at most every few seconds, less often where
writing takes long. A killed run then goes on from a little earlier, to the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, final
from zipfile import BadZipFile, ZipFile

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from frostline._files import has_own_sum, keep_as
from frostline._tensor_files import save_torch
from frostline.deltas import delta_content, load_delta, put_tensors, read_delta, save_delta
from frostline.engine import Hook, Sums, Training, even_out
from frostline.errors import ConfigError, CorruptDelta, OutputError, one_line
from frostline.plans import Phase, Plan
from frostline.records import (
    Answers,
    EpochRecord,
    Judged,
    PhaseRecord,
    RunFolder,
    kept_of,
    write_kept,
)
from frostline.session import goes_on
from frostline.tasks import Metrics, Task
from frostline.wording import option
from frostline.world import World, gathered_bytes

_PROGRESS = TypeAdapter(tuple[Sums, list[dict[str, Any]], list[PhaseRecord]])
# What a cut or overwritten state file makes torch, pickle and pydantic raise.
_DAMAGES = (
    *(OSError, RuntimeError, EOFError, UnpicklingError, BadZipFile),
    *(ValueError, KeyError, TypeError),
)
SAVE_SECONDS = 5.0
_SHARE_OF_TIME = 20  # writing takes at most a twentieth of it


@final
@dataclass(frozen=True, slots=True)
class _Moment:
    """What the files of a position will hold; the run goes on while they are not written."""

    about: Mapping[str, str]
    content: Mapping[str, Tensor]
    state: Mapping[str, object]


@final
class Saver(Hook):
    """Writes deltas as a run goes; with `resume`, starts from the last ones written.

    Args:
        folder: where to; None keeps the best in memory alone.
        about: notes for every delta.
        task: by which predictions are kept for the report.
        like: metrics of this task, as which those of a resumed run are read.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        about: Mapping[str, str],
        *,
        resume: bool,
        task: Task,
        like: Metrics,
    ) -> None:
        self._folder = folder
        self._about = dict(about)
        # What will be trained, as before the run: a best epoch of an early phase has it like that.
        self._start: Mapping[str, Tensor] = {}
        self._resume = resume
        self._task = task
        self._like = like
        self._records: list[str] = []  # of epochs, as JSON; written with each state
        self._best: _Moment | None = None
        # What that moment makes of the validation data.
        self._judged: Judged | Answers | None = None
        self._last: _Moment | None = None
        self._training: Training | None = None
        self._mark = ""  # the position that `last/delta.safetensors` holds
        self._wait_seconds = SAVE_SECONDS
        self._written_at = time.monotonic()

    def on_start(self, training: Training) -> None:
        self._training, session = training, training.session
        if len(session.phases) > 1:
            self._start = session.planned.copies(training.model)
        if self._resume:
            self._go_on(training)

    def _go_on(self, training: Training) -> None:
        """From where the run was last written; in all processes, of which the first reads."""
        folder, world = self._folder, training.session.world
        state: dict[str, Any] | None = None
        # A run that was killed before `last` was there has nothing to go on from, and begins.
        if folder and folder.last.exists():
            state = _restored(training, folder, plan=self._about.get("plan", ""), like=self._like)
        if world.size > 1:
            state = _of_first(state, world)
            even_out(training.model, training.session.planned, world)
            if state is not None and world.rank:
                _put(training, state, self._like)
        if state is not None:
            self._mark = training.position.mark

    def on_step(self, training: Training) -> None:
        """Within an epoch, where that lasts long."""
        ends = training.session.ends_epoch
        if self._folder is not None and self._is_due and not ends:
            self._last = self._moment(training, self._content(training))
            self._write()

    def on_epoch(self, training: Training) -> None:
        is_best = training.history[-1].best
        if self._folder is None and not is_best:
            return
        content = self._content(training)
        if is_best:
            self._best = self._moment(training, content, state=False)
            found = training.found
            if self._folder is not None and found is not None:
                task = self._task.settled(training.history[-1].validation)
                self._judged = kept_of(task, found, epoch=training.position.epochs)
        if self._folder is not None:
            # Copies: an interrupt comes within a later epoch, when weights have moved on.
            self._last = self._moment(training, content)
        if training.is_over or self._is_due:
            self._write()

    def on_phase(self, training: Training) -> None:
        """With the record of the phase, and before the next one is prepared, which may fail."""
        if self._last is not None:
            self._last = self._moment(training, self._last.content)
        self._write()

    def on_end(self) -> None:
        """Also after an error or an interrupt: what was trained is not lost."""
        self._write()

    def put_best(self, model: nn.Module) -> None:
        """Give `model` the best epoch's weights.

        Raises:
            DeltaError: as `load_delta`, where the folder holds them.
        """
        put_tensors(model, self._start)
        if self._folder is not None:
            load_delta(model, self._folder.best)
        elif self._best is not None:
            put_tensors(model, self._best.content)

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._written_at >= self._wait_seconds

    def _content(self, training: Training) -> dict[str, Tensor]:
        # Every buffer that is not held, moved or not: files are written later than their moment,
        # and one that moves in between would else count to the base.
        return delta_content(training.model, also=training.position.moved)

    def _moment(
        self, training: Training, content: Mapping[str, Tensor], *, state: bool = True
    ) -> _Moment:
        at = training.position
        about = {
            **self._about,
            "epoch": str(at.epochs),
            "phase": str(at.phase + 1),
            "position": at.mark,
        }
        return _Moment(about, content, self._state(training) if state else {})

    def _state(self, training: Training) -> dict[str, object]:
        training.settle_sums()
        sums, known = training.sums, len(self._records)
        self._records += [json.dumps(record.as_dict()) for record in training.history[known:]]
        return {
            **training.session.state_dict(),
            # A loss can be infinite, which this writes as Infinity.
            "progress": f"[{json.dumps(asdict(sums))}, [{', '.join(self._records)}], "
            f"{json.dumps([record.as_dict() for record in training.phase_history])}]",
            "scaler": training.compute.scaler.state_dict(),
        }

    def _write(self) -> None:
        folder, training, last = self._folder, self._training, self._last
        if folder is None or training is None or last is None:
            return
        start = time.monotonic()
        if self._judged is not None:
            with suppress(OutputError):  # a report can be had without; the run goes on
                write_kept(self._judged, folder)
            self._judged = None
        if (best := self._best) is not None:
            save_delta(training.model, folder.best, about=best.about, content=best.content)
            self._best = None
        save_torch(dict(last.state), folder.state(last.about["position"]), own_sum=True)
        keep = training.session.recipe.keep  # how many of the last stay, to go back to
        if keep > 1 and self._mark and folder.last.exists():
            keep_as(folder.last, folder.earlier(self._mark))
        save_delta(training.model, folder.last, about=last.about, content=last.content)
        self._mark = last.about["position"]
        folder.forget_old(self._mark, keep=keep)
        self._last, self._written_at = None, time.monotonic()
        self._wait_seconds = max(SAVE_SECONDS, _SHARE_OF_TIME * (self._written_at - start))


def _restored(training: Training, folder: RunFolder, *, plan: str, like: Metrics) -> dict[str, Any]:
    """The state where the run was last written, whose weights the model gets.

    Where the last files are damaged and earlier ones were kept, those are taken.
    """
    refusals: list[ConfigError | CorruptDelta] = []
    for file in (folder.last, *folder.earlier_ones()):
        try:
            if not _goes_on(read_delta(file).about.get("plan", ""), plan):
                raise ConfigError(
                    f"cannot resume by another plan: {file} was trained by the one in its notes, "
                    "and run.toml or the plan given says another. Restore it, or start a new run "
                    f"with another {option('out')}."
                )
            return _restored_from(training, folder, file, like)
        except (ConfigError, CorruptDelta) as error:
            refusals.append(error)
    raise refusals[0]


def _of_first(state: Mapping[str, Any] | None, world: World) -> dict[str, Any] | None:
    """The state that the first process read, in all."""
    written = BytesIO()
    if world.rank == 0:
        torch.save(state, written)
    every = BytesIO(gathered_bytes(world, written.getvalue()))
    found: dict[str, Any] | None = torch.load(every, weights_only=True)
    return found


def _goes_on(before: str, now: str) -> bool:
    """Of plans as the notes have them: a run without one is a phase that names nothing."""
    if before == now or not now:
        return before == now
    phases = Plan.loads(now).phases
    first = (Phase(epochs=phases[0].epochs or 1),)
    return goes_on(Plan.loads(before).phases if before else first, phases)


def _restored_from(
    training: Training, folder: RunFolder, file: Path, like: Metrics
) -> dict[str, Any]:
    delta = load_delta(training.model, file)
    about = delta.about
    state_file = folder.state(about.get("position") or about.get("epoch", ""))
    try:
        _check_state(state_file)
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        _put(training, state, like)
    except _DAMAGES as error:
        reason = one_line(error, first=True, named=False)
        raise ConfigError(
            f"cannot resume: {state_file} is missing or damaged ({reason}). Start a new run with "
            f"another {option('out')}; what was trained so far is in {folder.best.parent}."
        ) from error
    return dict(state)


def _put(training: Training, state: Mapping[str, Any], like: Metrics) -> None:
    """Go on from a state."""
    sums, epochs, phases = _PROGRESS.validate_json(state["progress"])
    history = [EpochRecord.read(record, like=like) for record in epochs]
    if "format" not in state:
        state = _as_of_now(state, training, history, sums)
    training.session.load_state_dict(state)
    if state["scaler"]:  # none where it went on in another precision
        training.compute.scaler.load_state_dict(state["scaler"])
    training.history[:], training.phase_history[:] = history, phases
    training.sums = sums


def _as_of_now(
    state: Mapping[str, Any], training: Training, history: Sequence[EpochRecord], sums: Sums
) -> dict[str, Any]:
    """A state of version 0.1, whose position was in its progress, with fewer facts."""
    before = json.loads(state["progress"])[0]
    sums.of_task = {"accuracy": before["correct"]}
    position = dict(before)  # what is no part of it is not read
    until = training.session.phases[position["phase"]].until
    if history and until is not None and until.target is not None:
        watched = history[-1].validation.metric(until.monitor)
        position["is_reached"] = watched.reaches(until.target)
    return {**training.session.state_dict(), **state, "position": position}


def _check_state(file: Path) -> None:
    """Compare checksums, which `torch.load` does not; files of before have those of a zip alone."""
    if not has_own_sum(file):
        with ZipFile(file) as records:
            if (damaged := records.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is not that of its content")
