"""An implicit schedule of finetuning-scheduler beside the same phases with `Freeze`.

    pip install --no-deps --target FOLDER finetuning-scheduler
    PYTHONPATH=FOLDER python benchmarks/schedulers.py [--json FILE]

A small network with batch norms learns to find a square. finetuning-scheduler makes its default
schedule (two parameters a level, from the head down) and goes on to the next level where the
validation loss stands still; `Freeze` has a phase for each of these levels, ended by the same rule,
and both begin a level from the best weights of the one before. Told are the steps, the epoch at
which each level is thawed, how far the running statistics of layers moved while these were frozen,
and whether a run that was killed within an epoch and resumed from its last checkpoint ends at the
bits of one that was not. Batches come in one order and nothing is drawn at random.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from shared import options, report, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.lightning import Freeze

LR, PATIENCE, MIN_CHANGE, MOST_EPOCHS = 1e-2, 1, 0.01, 60
LEVELS = ("head.2", "stage.1", "stage.0", "stem.1", "stem.0")


class Killed(Exception):  # noqa: N818  # it is no error
    """The run is to end here."""


@dataclass
class Found:
    """What one side did."""

    thawed: dict[str, int] = field(default_factory=dict)  # level -> epoch of its first step
    steps: int = 0
    moved: float = 0.0  # running means of layers that were frozen, at most
    resumed_equals: dict[int, bool] = field(default_factory=dict)  # step of the kill -> final bits
    resumed_steps: dict[int, int] = field(default_factory=dict)  # and all steps until the end
    loss: float = 0.0


def main() -> None:
    chosen = options(__doc__, kills=3)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "finetuning_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sides = {"finetuning-scheduler": theirs, "Freeze": ours}
    found = {name: side(chosen.kills) for name, side in sides.items()}
    rows = [
        (
            "",
            "steps",
            "last loss",
            "thawed in epoch",
            "moved",
            "killed at: same bits (steps in all)",
        )
    ]
    for name, side in found.items():
        epochs = ", ".join(f"{level} {epoch}" for level, epoch in side.thawed.items())
        ends = side.resumed_equals
        resumed = ", ".join(f"{at}: {ends[at]} ({side.resumed_steps[at]})" for at in ends)
        cells = (f"{side.steps}", f"{side.loss:.4f}", epochs, f"{side.moved:.4f}", resumed)
        rows.append((name, *cells))
    table(rows)
    report({name: asdict(side) for name, side in found.items()}, chosen.json)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential()
        self.model.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.model.stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())
        pool = nn.AdaptiveAvgPool2d(1)
        self.model.head = nn.Sequential(pool, nn.Flatten(), nn.Linear(16, 2))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=LR)


class Watching(pl.Callback):
    """Notes when a level is first trained, and what moved of the others."""

    def __init__(self, found: Found, kill_at: int | None) -> None:
        self.found = found
        self.kill_at = kill_at
        self.means: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == self.kill_at:
            raise Killed
        for level in LEVELS:
            layer = module.model.get_submodule(level)
            if layer.weight.requires_grad:
                self.found.thawed.setdefault(level, trainer.current_epoch)
            elif level not in self.means and isinstance(layer, nn.BatchNorm2d):
                self.means[level] = layer.running_mean.clone()

    def on_train_batch_end(self, _: pl.Trainer, module: Any, *__: object) -> None:
        for level, before in self.means.items():
            layer = module.model.get_submodule(level)
            if not layer.weight.requires_grad:
                moved = float((layer.running_mean - before).abs().max())
                self.found.moved = max(self.found.moved, moved)

    def on_train_end(self, trainer: pl.Trainer, _: object) -> None:
        self.found.steps = trainer.global_step
        self.found.loss = float(trainer.callback_metrics["val_loss"])


def fitted(folder: Path, callbacks: list[Any], found: Found, **how: Any) -> dict[str, str] | None:
    """The bits at the end; None where the run was killed."""
    module, kill_at = Module(), how.get("kill_at")
    trainer = pl.Trainer(
        max_epochs=MOST_EPOCHS,
        accelerator="cpu",
        callbacks=[*callbacks, Watching(found, kill_at)],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train, val = (DataLoader(squares(n, seed=n), batch_size=25) for n in (200, 100))
    try:
        trainer.fit(module, train, val, ckpt_path=how.get("resume"))
    except Killed:
        return None
    return dict(fl.fingerprint(module).tensors)


def with_kills(callbacks: Any, kills: int) -> Found:
    """A whole run, and runs that are killed in the midst of an epoch and resumed."""
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        whole = fitted(Path(folder), callbacks(Path(folder) / "saved"), found)
    for number in range(1, kills + 1):
        at = found.steps * number // (kills + 1) // 8 * 8 + 3
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "saved"
            fitted(Path(folder), callbacks(saved), Found(), kill_at=at)
            last = saved / "last.ckpt"
            rest = Found()
            bits = fitted(Path(folder), callbacks(saved), rest, resume=last)
        found.resumed_equals[at] = bits == whole
        found.resumed_steps[at] = rest.steps
    return found


def theirs(kills: int) -> Found:
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping

    def callbacks(saved: Path) -> list[Any]:
        return [
            FinetuningScheduler(base_max_lr=LR, log_dir=saved.parent, logging_level=logging.ERROR),
            FTSEarlyStopping(monitor="val_loss", patience=PATIENCE, min_delta=MIN_CHANGE),
            FTSCheckpoint(dirpath=saved, monitor="val_loss", save_last=True),
        ]

    return with_kills(callbacks, kills)


def ours(kills: int) -> Found:
    until = fl.Until(monitor="val_loss", patience=PATIENCE, min_change=MIN_CHANGE)
    phases = [
        fl.Phase(
            train=" | ".join(LEVELS[: level + 1]),
            until=until,
            start="best" if level else "last",
        )
        for level in range(len(LEVELS))
    ]
    plan = fl.Plan(phases)

    def callbacks(saved: Path) -> list[Any]:
        return [
            Freeze(plan, module="model", monitor="val_loss"),
            ModelCheckpoint(dirpath=saved, monitor="val_loss", save_last=True),
        ]

    return with_kills(callbacks, kills)


def squares(count: int, *, seed: int) -> TensorDataset:
    """Noise, with a bright square in every second picture."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 3, 16, 16, generator=generator)
    targets = torch.arange(count) % 2
    pictures[targets == 1, :, 4:12, 4:12] += 0.3
    return TensorDataset(pictures, targets)


if __name__ == "__main__":
    main()
