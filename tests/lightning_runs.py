"""A small Lightning module and its runs: by hand, under a plan, killed and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import frostline as fl
from phased_net import net, rows

HEAD = fl.Phase(name="head", train="head", epochs=2)
NECK = fl.Phase(name="neck", train="neck | head", epochs=2)
TWO = fl.Plan([HEAD, NECK])


class Module(pl.LightningModule):
    """As a user has it: nothing in it knows of a freeze."""

    def __init__(self, optimizers: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__()
        self.model = net()
        self.losses: list[float] = []
        self._optimizers_of = optimizers or adam

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self._optimizers_of(self)


def adam(module: nn.Module) -> Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01)


def loader(*, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(rows(), batch_size=8, shuffle=shuffle)


class ResumableLoader:
    """Shuffled batches, of which a checkpoint keeps how many were given out."""

    def __init__(self) -> None:
        self.inputs, self.targets = rows().tensors
        self.given = 0
        self.order: Tensor | None = None

    def __len__(self) -> int:
        return -(-len(self.inputs) // 8)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.order is None or self.given == len(self):
            self.given, self.order = 0, torch.randperm(len(self.inputs))
        for number, chosen in enumerate(self.order.split(8)):
            if number >= self.given:
                self.given = number + 1
                yield self.inputs[chosen], self.targets[chosen]
        self.given, self.order = 0, None

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given, self.order = state["given"], state["order"]


class KilledError(Exception):
    """The process is gone."""


class KillAt(pl.Callback):
    """Raises within that step of the optimizer."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step + 1 == self.step:
            raise KilledError


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    some = {"max_epochs": -1, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    some["enable_checkpointing"] = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    return pl.Trainer(accelerator="cpu", callbacks=[*callbacks], **(quiet | some | options))


def run(
    *callbacks: pl.Callback,
    module: Module | None = None,
    train: Any = None,
    resume: Path | None = None,
    **options: Any,
) -> Module:
    """Fit a new module; gives it. A resumed run begins with other random numbers."""
    made = module or Module()
    torch.manual_seed(7 if resume is None else 99)
    held_out = DataLoader(rows(12, seed=2), batch_size=8)
    trainer(*callbacks, **options).fit(made, train or loader(), held_out, ckpt_path=resume)
    return made


def saving(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **options)


def last_saved(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.ckpt"), key=lambda file: int(file.stem.partition("=")[2]))
    return files[-1] if files else None


def bits(module: nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(module).tensors)


def frozen_names(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if not p.requires_grad]


class Watching(pl.Callback):
    """Notes after each step what trains, which modules are in train mode, and the rates."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[str, ...], tuple[str, ...]]] = []
        self.rates: list[list[float]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: object
    ) -> None:
        parts: Sequence[str] = ("body", "neck", "head")
        live = tuple(n for n in parts if module.get_submodule(f"model.{n}").training)
        wants = tuple(
            n for n in parts if next(module.get_submodule(f"model.{n}").parameters()).requires_grad
        )
        self.seen.append((trainer.current_epoch, wants, live))
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
