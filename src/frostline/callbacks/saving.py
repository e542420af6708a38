"""Keeps the best and the last delta, and what is needed to go on from the last whole epoch.

`last/delta.safetensors` is written after the state of the same epoch and names that epoch, so a
run killed at any instant has one delta with its state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pickle import UnpicklingError
from typing import final

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import nn

from frostline._files import replacing
from frostline.deltas import load_delta, save_delta
from frostline.engine import EpochRecord, Hook, Training
from frostline.errors import ConfigError
from frostline.fingerprints import Fingerprint
from frostline.folder import RunFolder

# A loss can be infinite, which plain JSON would turn into null.
_HISTORY = TypeAdapter(list[EpochRecord], config=ConfigDict(ser_json_inf_nan="constants"))
# What a cut or overwritten state file makes torch, pickle and pydantic raise.
_DAMAGES = (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError)


@final
class Saver(Hook):
    """Writes deltas after each epoch; with `resume`, starts from the last ones written.

    Args:
        base: fingerprint of the whole model before training.
        about: notes for every delta.
    """

    def __init__(
        self, folder: RunFolder, base: Fingerprint, about: Mapping[str, str], *, resume: bool
    ) -> None:
        self._folder = folder
        self._base = base
        self._about = dict(about)
        self._resume = resume

    def on_start(self, training: Training) -> None:
        # A run that was killed before it began has nothing to go on from, and begins.
        if self._resume and (self._folder.last.exists() or self._folder.best.exists()):
            restore(training, self._folder)
        else:
            self._save_last(training)

    def on_epoch(self, training: Training) -> None:
        if training.history[-1].best:
            self._save(training.model, self._folder.best, training.epochs_done)
        self._save_last(training)

    def _save_last(self, training: Training) -> None:
        epoch = training.epochs_done
        with replacing(self._folder.state(epoch)) as temporary:
            torch.save(_state(training), temporary)
        self._save(training.model, self._folder.last, epoch)
        for state in self._folder.last.parent.glob("state-*.pt"):
            if state != self._folder.state(epoch):
                state.unlink(missing_ok=True)

    def _save(self, model: nn.Module, path: object, epoch: int) -> None:
        about = {**self._about, "epoch": str(epoch)}
        save_delta(model, str(path), base=self._base, about=about)


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
