"""Keeps the best and the last delta, and what is needed to go on from the last whole epoch.

`last/delta.safetensors` is written after the state of the same epoch and names that epoch, so a
run killed at any instant has one delta with its state. Where epochs last milliseconds, writing
each would cost more than training it: the ends of the last and the best epoch are kept in memory,
and files are written at most every few seconds and at the end. A killed run then goes on from a few
epochs earlier, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import final

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor, nn

from frostline._files import replacing
from frostline.deltas import all_tensors, delta_content, load_delta, save_delta
from frostline.engine import EpochRecord, Hook, Training
from frostline.errors import ConfigError
from frostline.fingerprints import Fingerprint
from frostline.folder import RunFolder

# A loss can be infinite, which plain JSON would turn into null.
_HISTORY = TypeAdapter(list[EpochRecord], config=ConfigDict(ser_json_inf_nan="constants"))
# What a cut or overwritten state file makes torch, pickle and pydantic raise.
_DAMAGES = (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError)
SAVE_SECONDS = 5.0


@final
@dataclass(frozen=True, slots=True)
class _EpochEnd:
    """What the files of an epoch will hold; the run goes on while they are not written."""

    epoch: int
    content: Mapping[str, Tensor]
    state: Mapping[str, object]


@final
class Saver(Hook):
    """Writes deltas as a run goes; with `resume`, starts from the last ones written.

    Args:
        folder: where to; None keeps the best in memory alone.
        base: fingerprint of the whole model before training.
        about: notes for every delta.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        base: Fingerprint | None,
        about: Mapping[str, str],
        *,
        resume: bool,
    ) -> None:
        self._folder = folder
        self._base = base
        self._about = dict(about)
        self._resume = resume
        self._best: tuple[int, dict[str, Tensor]] | None = None
        self._last: _EpochEnd | None = None
        self._training: Training | None = None
        self._written_at = time.monotonic()

    def on_start(self, training: Training) -> None:
        # A run that was killed before `last` was there has nothing to go on from, and begins.
        if self._resume and self._folder and self._folder.last.exists():
            restore(training, self._folder)
        self._training = training

    def on_epoch(self, training: Training) -> None:
        is_best = training.history[-1].best
        if self._folder is None and not is_best:
            return
        content = delta_content(training.model, base=self._base)
        if is_best:
            self._best = training.epochs_done, content
        if self._folder is not None:
            # Copies: an interrupt comes within a later epoch, when weights have moved on.
            self._last = _EpochEnd(training.epochs_done, content, deepcopy(_state(training)))
        if training.is_over or time.monotonic() - self._written_at >= SAVE_SECONDS:
            self._write()

    def on_end(self) -> None:
        """Also after an error or an interrupt: what was trained is not lost."""
        self._write()

    def put_best(self, model: nn.Module) -> None:
        """Give `model` the best epoch's weights.

        Raises:
            DeltaError: as `load_delta`, where the folder holds them.
        """
        if self._folder is not None:
            load_delta(model, self._folder.best)
            return
        assert self._best is not None
        tensors = all_tensors(model)
        with torch.no_grad():
            for name, content in self._best[1].items():
                tensors[name].copy_(content)

    def _write(self) -> None:
        folder, training, last = self._folder, self._training, self._last
        if folder is None or training is None or last is None:
            return
        if self._best is not None:
            self._save(training.model, folder.best, *self._best)
            self._best = None
        with replacing(folder.state(last.epoch)) as temporary:
            torch.save(dict(last.state), temporary)
        self._save(training.model, folder.last, last.epoch, last.content)
        for state in folder.last.parent.glob("state-*.pt"):
            if state != folder.state(last.epoch):
                state.unlink(missing_ok=True)
        self._last, self._written_at = None, time.monotonic()

    def _save(
        self, model: nn.Module, path: Path, epoch: int, content: Mapping[str, Tensor]
    ) -> None:
        about = {**self._about, "epoch": str(epoch)}
        save_delta(model, path, base=self._base, about=about, content=content)


def restore(training: Training, folder: RunFolder) -> None:
    """Put the model, the optimizer and the position to where the run's last whole epoch ended.

    Raises:
        ConfigError: there is nothing to go on from.
        DeltaError: the last delta is damaged or belongs to another model.
    """
    delta = load_delta(training.model, folder.last)
    file = folder.state(int(delta.about["epoch"]))
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        training.optimizer.load_state_dict(state["optimizer"])
        training.epochs_done = state["epochs_done"]
        training.best_epoch = state["best_epoch"]
        training.best_figure = state["best_figure"]
        training.history[:] = _HISTORY.validate_json(state["history"])
    except _DAMAGES as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"cannot resume: {file} is missing or damaged ({reason}). Start a new run with another "
            f"--out; what was trained so far is in {folder.best.parent}."
        ) from error


def _state(training: Training) -> dict[str, object]:
    return {
        "optimizer": training.optimizer.state_dict(),
        "epochs_done": training.epochs_done,
        "best_epoch": training.best_epoch,
        "best_figure": training.best_figure,
        "history": _HISTORY.dump_json(training.history).decode(),
    }
