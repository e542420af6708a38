"""Figures of each epoch for machines: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, final

from frostline._files import append_line, write_text
from frostline.engine import EpochRecord, Hook, Training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_CURVES = frozenset(
    {
        *("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1"),
        *("seconds", "samples_per_second"),
    }
)


def figures(record: EpochRecord) -> dict[str, object]:
    """One epoch as flat numbers; `lrs` where parameters have several learning rates."""
    return {
        "epoch": record.epoch,
        "phase": record.phase,
        "lr": record.lr,
        "train_loss": record.train_loss,
        "train_accuracy": record.train_accuracy,
        "val_loss": record.validation.loss,
        "val_accuracy": record.validation.accuracy,
        "val_macro_f1": record.validation.macro_f1,
        "seconds": record.seconds,
        "samples_per_second": record.samples_per_second,
        "best": record.best,
        **({"lrs": list(record.rates)} if len(record.rates) > 1 else {}),
        **(asdict(record.spent) if record.spent is not None else {}),
    }


@final
class MetricsLog(Hook):
    """Appends a JSON object for each epoch; on a resume, drops lines past the position."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, training: Training) -> None:
        lines = (json.dumps(figures(record)) + "\n" for record in training.history)
        write_text(self._path, "".join(lines))

    def on_epoch(self, training: Training) -> None:
        append_line(self._path, json.dumps(figures(training.history[-1])))


@final
class TensorBoardLog(Hook):
    """Writes curves for TensorBoard, one point for each epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: SummaryWriter | None = None

    def on_start(self, training: Training) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._path), purge_step=training.epochs_done + 1)

    def on_epoch(self, training: Training) -> None:
        assert self._writer is not None
        record = training.history[-1]
        for name, value in figures(record).items():
            if name in _CURVES:
                self._writer.add_scalar(name.replace("_", "/", 1), value, record.epoch)
        self._writer.flush()

    def on_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
