"""One job in several loops: are frozen bits the same, final bits, and what does a loop cost?

    python benchmarks/loops.py [--loops fit plain ...] [--epochs 2] [--photos 244] [--json FILE]

The job is hymenoptera and MobileNetV2 with ImageNet weights: a new head for `--epochs` epochs, then
the head and the last stage for one. Photos are decoded beforehand, features are not stored, so that
each loop does the same work. *fit* is `fl.fit`; *plain* a loop by hand over the same batches and
random numbers; *lightning by hand* a module that freezes itself, in eval mode and with an optimizer
that gets the last stage later; *lightning* the same module without that, with `Freeze`; the two of
transformers' *Trainer* likewise, with one constant rate: a schedule of the Trainer's is for all.

`fit` and `plain` are to end at the same bits, and the two of Lightning, and of the Trainer; what is
frozen in a phase is to have the same hash in all. *Overhead* is what a step costs beside the bare
step of a linear head on 1,280 numbers a sample.
"""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from shared import network, options, photos, report, table, threads
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.data import make_batches, open_data
from frostline.engine import Hook, Training
from frostline.lightning import Freeze
from frostline.session.randomness import seed_epoch
from frostline.transformers import Freeze as FreezeTrainer

BATCH, HEAD_LR, STAGE_LR = 32, 1e-3, 1e-4
HEAD, STAGE = "classifier", "features.18"
FEATURES, STEPS, REPEATS = 1280, 500, 5  # of the overhead


@dataclass
class Job:
    """What each loop is given: a copy of the model, the data in memory, and the plan."""

    model: nn.Module
    train: TensorDataset
    val: TensorDataset
    epochs: int

    @property
    def plan(self) -> fl.Plan:
        # The optimizer of each loop begins with the first of these rates.
        head = fl.Phase(train=HEAD, epochs=self.epochs, lr=HEAD_LR)
        return fl.Plan([head, fl.Phase(train=f"{HEAD} | {STAGE}", epochs=1, lr=STAGE_LR)])


@dataclass
class Found:
    """What a loop gave."""

    frozen: list[str] = field(default_factory=list)  # a hash for each phase
    bits: str = ""
    seconds: float = 0.0


def main() -> None:
    chosen = options(__doc__, loops=tuple(LOOPS), epochs=2, photos=244)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    threads()
    given = job(chosen.epochs, chosen.photos)
    found = {}
    for name in chosen.loops:
        found[name] = timed(LOOPS[name], copy.deepcopy(given))
        print(name, f"{found[name].seconds:.1f} s", flush=True)
    rows = [("loop", "seconds", "frozen in phase 1", "frozen in phase 2", "final bits")]
    for name, side in found.items():
        hashes = [text.removeprefix("xxh3:")[:12] for text in (*side.frozen, side.bits)]
        rows.append((name, f"{side.seconds:.1f}", *hashes))
    table(rows)
    epochs = stored_epochs(given)
    for name, took in epochs.items():
        ratio = took["without"] / took["stored"]
        print(f"{name}: {took['without']:.2f} and {took['stored']:.3f} s of CPU, {ratio:.0f} times")
    costs = overhead()
    for name, value in costs.items():
        print(f"{name}: {1e6 * value:.0f} microseconds of CPU a step")
    sides = {name: asdict(side) for name, side in found.items()}
    settings = {"epochs": chosen.epochs, "photos": len(given.train)}
    figures = {"settings": settings, "loops": sides, "epoch_cpu_seconds": epochs}
    report({**figures, "step_cpu_seconds": costs}, chosen.json)


def job(epochs: int, count: int) -> Job:
    """Over about so many photos to train on, and as many to validate on, or all there are."""
    loaded = network("mobilenet_v2")
    fl.thaw(loaded.model, "all")
    train, val = (in_memory(part, count) for part in photos(loaded))
    return Job(loaded.model, train, val, epochs)


def in_memory(data: Any, count: int) -> TensorDataset:
    chosen = range(0, len(data), max(1, len(data) // count))
    inputs, targets = zip(*(data[index] for index in chosen), strict=True)
    return TensorDataset(torch.stack(inputs), torch.tensor(targets))


def timed(loop: Callable[[Job], Found], given: Job) -> Found:
    start = time.perf_counter()
    found = loop(given)
    found.seconds = time.perf_counter() - start
    return found


def frozen_hash(model: nn.Module, *, with_stage: bool) -> str:
    """Of all that is outside the trained parts, by whoever froze it."""
    trained = (f"{HEAD}.", f"{STAGE}.") if with_stage else (f"{HEAD}.",)
    content = {n: t for n, t in fl.fingerprint(model).tensors.items() if not n.startswith(trained)}
    return str(fl.Fingerprint(content))


# The loops


def fit(given: Job) -> Found:
    found = Found()

    class Noting(Hook):
        def on_phase(self, training: Training) -> None:
            found.frozen.append(frozen_hash(training.model, with_stage=bool(found.frozen)))
            # Here, since `fit` puts the best weights at its end.
            found.bits = str(fl.fingerprint(training.model))

    fl.fit(
        given.model,
        given.train,
        given.val,
        plan=given.plan,
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
        warmup=0,
        precision="exact",
        features="off",
        batch_size=BATCH,
        device="cpu",
        hooks=[Noting()],
    )
    return found


def plain(given: Job) -> Found:
    """By hand, over the batches and the random numbers that `fit` has."""
    found, model, total = Found(), given.model, given.epochs + 1
    train, val = open_data(given.train), open_data(given.val)
    batches = make_batches(train, batch_size=BATCH, shuffle=True, seed=0)
    held_out = make_batches(val, batch_size=BATCH, shuffle=False, seed=0)
    optimizer = torch.optim.Adam(model.get_submodule(HEAD).parameters(), lr=HEAD_LR, fused=True)
    for epoch in range(total):
        with_stage = epoch == given.epochs
        if epoch == 0 or with_stage:
            freeze_by_hand(model, optimizer, with_stage=with_stage)
        seed_epoch(0, epoch)
        modes_by_hand(model, with_stage=with_stage)
        for batch in batches.epoch(epoch):
            loss = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for batch in held_out.epoch(0):
                nn.functional.cross_entropy(model(batch.inputs), batch.targets)
        if epoch + 1 >= given.epochs:
            found.frozen.append(frozen_hash(model, with_stage=with_stage))
    found.bits = str(fl.fingerprint(model))
    return found


def freeze_by_hand(model: nn.Module, optimizer: Any, *, with_stage: bool) -> None:
    model.requires_grad_(False)
    model.get_submodule(HEAD).requires_grad_(True)
    if with_stage:
        stage = model.get_submodule(STAGE).requires_grad_(True)
        for group in optimizer.param_groups:
            group["lr"] = STAGE_LR
        optimizer.add_param_group({"params": list(stage.parameters()), "lr": STAGE_LR})


def modes_by_hand(model: nn.Module, *, with_stage: bool) -> None:
    model.eval()
    model.get_submodule(HEAD).train()
    if with_stage:
        model.get_submodule(STAGE).train()


class Module(pl.LightningModule):
    """Knows of no freeze."""

    def __init__(self, model: nn.Module, lr: float = HEAD_LR) -> None:
        super().__init__()
        self.model = model
        self.lr = lr

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)


class ByHand(Module):
    """Freezes itself, right."""

    def __init__(self, model: nn.Module, epochs: int) -> None:
        super().__init__(model)
        self.epochs = epochs

    def on_train_epoch_start(self) -> None:
        with_stage = self.current_epoch == self.epochs
        if self.current_epoch == 0 or with_stage:
            optimizer = self.optimizers(use_pl_optimizer=False)
            freeze_by_hand(self.model, optimizer, with_stage=with_stage)
        modes_by_hand(self.model, with_stage=with_stage)

    def configure_optimizers(self) -> Any:
        head = self.model.get_submodule(HEAD)
        return torch.optim.Adam(head.parameters(), lr=self.lr, fused=True)


class Noting(pl.Callback):
    """The hash of what is frozen, at the ends of phases."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.frozen: list[str] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            self.frozen.append(frozen_hash(module.model, with_stage=bool(self.frozen)))


def lightning_by_hand(given: Job) -> Found:
    return in_lightning(ByHand(given.model, given.epochs), given)


def lightning(given: Job) -> Found:
    return in_lightning(Module(given.model), given, Freeze(given.plan, module="model"))


def in_lightning(module: Module, given: Job, *callbacks: pl.Callback) -> Found:
    torch.manual_seed(0)
    noting = Noting(given.epochs)
    loaders = (
        DataLoader(given.train, batch_size=BATCH, shuffle=True),
        DataLoader(given.val, batch_size=BATCH),
    )
    quiet_trainer([*callbacks, noting], max_epochs=given.epochs + 1).fit(module, *loaders)
    return Found(noting.frozen, str(fl.fingerprint(given.model)))


def quiet_trainer(callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


class Named(nn.Module):
    """The model as transformers' Trainer calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class NamedByHand(Named):
    """Keeps the right parts in eval mode, whoever calls `train()`."""

    with_stage = False

    def train(self, mode: bool = True) -> NamedByHand:
        super().train(mode)
        if mode:
            modes_by_hand(self.model, with_stage=self.with_stage)
        return self


class FreezeByHand(transformers.TrainerCallback):
    """Over the Trainer's optimizer, which holds all and skips what has no gradient."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_begin(self, _args: Any, state: Any, *_: Any, **given: Any) -> None:
        model = given["model"]
        model.with_stage = round(state.epoch) == self.epochs
        model.requires_grad_(False)
        model.model.get_submodule(HEAD).requires_grad_(True)
        model.model.get_submodule(STAGE).requires_grad_(model.with_stage)


class NotingTrainer(transformers.TrainerCallback):
    """The hash of what is frozen, at the ends of phases."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.frozen: list[str] = []

    def on_epoch_end(self, _args: Any, state: Any, *_: Any, **given: Any) -> None:
        if round(state.epoch) >= self.epochs:
            model = given["model"].model
            self.frozen.append(frozen_hash(model, with_stage=bool(self.frozen)))


def trainer_by_hand(given: Job) -> Found:
    return in_trainer(NamedByHand(given.model), given, FreezeByHand(given.epochs))


def trainer(given: Job) -> Found:
    head = fl.Phase(train=HEAD, epochs=given.epochs)
    stage = fl.Phase(train=f"{HEAD} | {STAGE}", epochs=1)
    freeze = FreezeTrainer(fl.Plan([head, stage]), module="model")
    return in_trainer(Named(given.model), given, freeze)


def in_trainer(model: Named, given: Job, callback: Any) -> Found:
    noting = NotingTrainer(given.epochs)
    train, val = (
        [{"pixels": pixels, "labels": label} for pixels, label in part]
        for part in (given.train, given.val)
    )
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=given.epochs + 1,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=HEAD_LR,
            lr_scheduler_type="constant",
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        callbacks = [callback, noting]
        transformers.Trainer(
            model, args, train_dataset=train, eval_dataset=val, callbacks=callbacks
        ).train()
    return Found(noting.frozen, str(fl.fingerprint(given.model)))


LOOPS: dict[str, Callable[[Job], Found]] = {
    "fit": fit,
    "plain": plain,
    "lightning by hand": lightning_by_hand,
    "lightning": lightning,
    "trainer by hand": trainer_by_hand,
    "trainer": trainer,
}


# An epoch on stored features, and without


class Timing(pl.Callback):
    """CPU seconds of each epoch, with its validation."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.start = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, *_: object) -> None:
        self.epochs.append(time.process_time() - self.start)


def stored_epochs(given: Job) -> dict[str, dict[str, float]]:
    """CPU seconds of a Lightning epoch for the head alone, and with the last stage."""
    found = {}
    for name, trained in (("head", HEAD), ("last stage", f"{HEAD} | {STAGE}")):
        without, stored = Timing(), Timing()
        loaders = (DataLoader(part, batch_size=BATCH) for part in (given.train, given.val))
        freeze = Freeze(f"~({trained})", module="model")
        quiet_trainer([freeze, without], max_epochs=2).fit(Module(given.model), *loaders)
        fl.train_only(given.model, trained)
        cut = fl.cut(given.model, torch.stack([given.train[n][0] for n in range(4)]))
        with tempfile.TemporaryDirectory() as folder:
            parts = [fl.extract(cut, part, folder) for part in (given.train, given.val)]
            loaders = (part.loader(batch_size=BATCH) for part in parts)
            quiet_trainer([stored], max_epochs=4).fit(Module(cut.suffix), *loaders)
        found[name] = {"without": min(without.epochs), "stored": min(stored.epochs)}
    return found


# What a step costs beside its work


def overhead() -> dict[str, float]:
    """CPU seconds of a step on one thread, the median of several runs with the Trainer's start."""
    torch.set_num_threads(1)
    batches = [(torch.randn(BATCH, FEATURES), torch.arange(BATCH) % 2) for _ in range(STEPS)]
    ways: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(batches),
        "lightning": lambda: heads_in_lightning(batches),
        "lightning and Freeze": lambda: heads_in_lightning(batches, Freeze("model.0")),
    }
    runs = [{name: cpu_seconds(way) / STEPS for name, way in ways.items()} for _ in range(REPEATS)]
    return {name: statistics.median(run[name] for run in runs) for name in ways}


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def two_layers() -> nn.Module:
    """A frozen layer that costs nothing, and a head."""
    return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 2))


def bare(batches: list[tuple[Tensor, Tensor]]) -> None:
    model = two_layers()
    fl.train_only(model, "1")
    optimizer = torch.optim.Adam(model[1].parameters(), lr=HEAD_LR, fused=True)
    for inputs, targets in batches:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Ready:
    """Batches that wait in memory; a list of them Lightning would take for several loaders."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def heads_in_lightning(batches: list[tuple[Tensor, Tensor]], *callbacks: pl.Callback) -> None:
    module = Module(two_layers())
    if not callbacks:
        module.model[0].requires_grad_(False)
    quiet_trainer([*callbacks], max_epochs=1, limit_val_batches=0).fit(module, Ready(batches))


if __name__ == "__main__":
    main()
