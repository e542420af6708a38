"""The training loop and its hooks. It knows no file and prints nothing.

Every random number depends on the recipe's seed and the epoch alone, so that an epoch can be
run again, or a run continued at an epoch, with the same bits on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.data import Batch, Batches
from frostline.devices import Arithmetic, Precision
from frostline.errors import DataError, FreezeError, NonFiniteLoss, TrainingError
from frostline.groups import ParamGroup, default_lr, param_groups
from frostline.metrics import Evaluation, evaluate_logits
from frostline.models import logits_of
from frostline.modes import modes_kept
from frostline.recipe import Recipe

Forward = Callable[..., Any]


@final
@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: counted from 1.
        lr: learning rate of the last stage at the epoch's end.
        train_loss: mean of the loss that was minimised, per sample.
        train_accuracy: over the epoch, while the weights moved.
        seconds: training and validation together.
        samples_per_second: of training.
        best: whether its validation figure is the best so far.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation: Evaluation
    seconds: float
    samples_per_second: float
    best: bool


@final
@dataclass
class Training:
    """A training run as it goes: what hooks see, and what a resumed run starts from."""

    model: nn.Module
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    epochs_done: int = 0
    best_epoch: int = 0
    best_figure: float | None = None
    history: list[EpochRecord] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        waited = self.epochs_done - self.best_epoch
        patience = self.recipe.patience
        out_of_patience = patience is not None and self.best_epoch > 0 and waited >= patience
        return self.epochs_done >= self.recipe.epochs or out_of_patience


class Hook:
    """What a run may call out to; each method does nothing unless it is written."""

    def on_start(self, training: Training) -> None:
        """Before the first step; may set the position to resume from."""

    def on_notice(self, text: str, /) -> None:
        """One line for people on how the run will go, before the first step."""

    def on_batch(self, stage: str, done: int, total: int, /) -> None:
        """After each batch of `stage` ("features", "train" or "validate")."""

    def on_epoch(self, training: Training) -> None:
        """After each epoch; `training.history[-1]` is its record."""

    def on_end(self) -> None:
        """Last of all, also when the run was interrupted or failed."""


@final
@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits `(samples, classes)`, targets `(samples,)` and what each sample is called."""

    logits: Tensor
    targets: Tensor
    names: tuple[str, ...]


def train(
    model: nn.Module,
    batches: Batches,
    validation: Batches,
    *,
    recipe: Recipe,
    classes: Sequence[str],
    device: str = "auto",
    class_weights: Tensor | None = None,
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Training:
    """Train what is trainable in `model`, epoch by epoch, and validate after each.

    The trainable part is in train mode while training; validation is in eval mode without
    gradients. Afterwards every module has the mode it had before, and torch's random state is
    as it was.

    Args:
        forward: what batches go through, if not `model` itself: the suffix of a cut, whose mode
            and parameters are the model's.

    Raises:
        FreezeError: nothing is trainable.
        NonFiniteLoss: the loss is NaN or infinite, before a step is made with it; or an output
            is NaN in validation, before the epoch is reported.
        DataError: a label is outside the classes.
        TrainingError: a batch does not go through the model; says why and what to do.
    """
    stepper = _Stepper(model, recipe, device, class_weights, model if forward is None else forward)
    training = Training(model, recipe, stepper.optimizer)
    hooks = tuple(hooks)
    with modes_kept(model), _random_state_kept(), _ended(hooks):
        for hook in hooks:
            hook.on_start(training)
        while not training.is_over:
            record = _epoch(stepper, training, batches, validation, classes, hooks)
            training.epochs_done = record.epoch
            if record.best:
                training.best_epoch = record.epoch
                training.best_figure = record.validation.headline()[recipe.monitor]
            training.history.append(record)
            for hook in hooks:
                hook.on_epoch(training)
    return training


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    classes: Sequence[str],
    device: str = "auto",
    precision: Precision = "fp32",
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Evaluation:
    """Figures of `model` on data, in eval mode without gradients; every mode is restored.

    Args:
        forward: as for `train`.

    Raises:
        DataError: a label is outside the classes.
        NonFiniteLoss: an output is NaN; names its batch.
    """
    found = predict(
        model, batches, device=device, precision=precision, forward=forward, hooks=hooks
    )
    return _judge(found, classes)


def predict(
    model: nn.Module,
    batches: Batches,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Predictions:
    """Logits of `model` for data, in eval mode without gradients; every mode is restored.

    Args:
        forward: as for `train`.

    Raises:
        NonFiniteLoss: an output is NaN; names its batch.
    """
    arithmetic = Arithmetic(device, precision)
    model.to(arithmetic.device)
    return _predict(model, batches, arithmetic, model if forward is None else forward, tuple(hooks))


@final
class _Stepper:
    """The one place where a batch becomes a step."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: str,
        class_weights: Tensor | None,
        forward: Forward,
    ) -> None:
        self.model = model
        self.forward = forward
        self.recipe = recipe
        self.arithmetic = Arithmetic(device, recipe.mixed)
        model.to(self.arithmetic.device)
        groups = param_groups(
            model,
            lr=recipe.lr or default_lr(model, optimizer=recipe.optimizer),
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
        self.trainable = [p for group in groups for p in group["params"]]
        self.optimizer = make_optimizer(groups, recipe)
        self._peaks = [group["lr"] for group in groups]
        self.arithmetic.take(self.optimizer)
        # What a backward before this run left behind is no part of the first step.
        self.optimizer.zero_grad(set_to_none=True)
        weights = None if class_weights is None else class_weights.to(self.arithmetic.device)
        self._loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=recipe.label_smoothing)

    def step(self, batch: Batch, lr_factor: float, *, check: bool = True) -> tuple[float, Tensor]:
        """One optimizer step; gives the batch's loss and how many it got right.

        Args:
            check: whether the targets are still to be checked; once an epoch has seen them, no.
        """
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * lr_factor
        targets = batch.targets.to(self.arithmetic.device, non_blocking=True)
        with _batch_errors(batch):
            with self.arithmetic.autocast():
                logits = _call(self.forward, batch.inputs, self.arithmetic)
                if check:
                    check_targets(batch.targets, logits.shape[1], batch.names)
                loss = self._loss(logits.float(), targets)
            value = self._update(loss, batch)
        return value, (logits.detach().argmax(dim=1) == targets).sum()

    def _update(self, loss: Tensor, batch: Batch) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise _non_finite(f"the loss became {value}", batch.names)
        if not loss.requires_grad:
            raise FreezeError(
                "the loss does not depend on any trainable parameter, so nothing would be "
                "learned. Check that what you train is used in the model's forward."
            )
        self.arithmetic.backward(loss)
        if self.recipe.clip_norm is not None:
            self.arithmetic.clip(self.trainable, self.recipe.clip_norm)
        self.arithmetic.step()
        for parameter in self.trainable:
            parameter.grad = None
        return value


def check_targets(targets: Tensor, classes: int, names: Sequence[str]) -> None:
    """Make sure that class indices count through `classes` classes.

    Raises:
        DataError: one does not; names its sample.
    """
    if not len(targets):
        return
    lowest, highest = (int(end) for end in targets.aminmax())
    if lowest < 0 or highest >= classes:
        outside = (targets < 0) | (targets >= classes)
        first = int(outside.nonzero()[0])
        raise DataError(
            f"the label of {names[first]} is {int(targets[first])}, but the model tells {classes} "
            f"classes apart: 0 to {classes - 1}. Mend the labels or the head."
        )


def make_optimizer(groups: list[ParamGroup], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over `groups`, with fused kernels where torch has them."""
    fused = all(p.is_floating_point() for group in groups for p in group["params"])
    options: dict[str, Any] = {"fused": fused or None}
    plain: list[dict[str, Any]] = [dict(group) for group in groups]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(plain, momentum=recipe.momentum, **options)
    adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return adam(plain, **options)


def _epoch(
    stepper: _Stepper,
    training: Training,
    batches: Batches,
    validation: Batches,
    classes: Sequence[str],
    hooks: tuple[Hook, ...],
) -> EpochRecord:
    start = time.perf_counter()
    loss, accuracy = _train_epoch(stepper, training, batches, hooks)
    seconds = time.perf_counter() - start
    found = _predict(stepper.model, validation, stepper.arithmetic, stepper.forward, hooks)
    evaluation = _judge(found, classes)
    figure = evaluation.headline()[training.recipe.monitor]
    return EpochRecord(
        epoch=training.epochs_done + 1,
        lr=max(group["lr"] for group in stepper.optimizer.param_groups),
        train_loss=loss,
        train_accuracy=accuracy,
        validation=evaluation,
        seconds=time.perf_counter() - start,
        samples_per_second=batches.samples / seconds,
        best=training.recipe.is_better(figure, training.best_figure),
    )


def _train_epoch(
    stepper: _Stepper, training: Training, batches: Batches, hooks: tuple[Hook, ...]
) -> tuple[float, float]:
    """Mean loss and accuracy of one pass over the training data."""
    epoch, count = training.epochs_done, len(batches)
    torch.manual_seed(training.recipe.seed + 1_000_003 * epoch)
    stepper.model.train()
    loss_sum, seen = 0.0, 0
    correct_sum = torch.zeros((), dtype=torch.int64, device=stepper.arithmetic.device)
    with closing(batches.epoch(epoch)) as given:
        for number, batch in enumerate(given):
            factor = training.recipe.lr_factor(epoch * count + number, count)
            loss, correct = stepper.step(batch, factor, check=not training.history)
            loss_sum += loss * len(batch.targets)
            correct_sum += correct
            seen += len(batch.targets)
            for hook in hooks:
                hook.on_batch("train", number + 1, count)
    return loss_sum / seen, float(correct_sum) / seen


def _predict(
    model: nn.Module,
    batches: Batches,
    arithmetic: Arithmetic,
    forward: Forward,
    hooks: tuple[Hook, ...],
) -> Predictions:
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    names: list[str] = []
    with modes_kept(model), torch.no_grad(), closing(batches.epoch(0)) as given:
        model.eval()
        for number, batch in enumerate(given):
            with arithmetic.autocast(), _batch_errors(batch):
                output = _call(forward, batch.inputs, arithmetic)
            if output.isnan().any():
                raise _non_finite("the model's output became NaN", batch.names)
            logits.append(output.float().cpu())
            targets.append(batch.targets.cpu())
            names.extend(batch.names)
            for hook in hooks:
                hook.on_batch("validate", number + 1, len(batches))
    return Predictions(torch.cat(logits), torch.cat(targets), tuple(names))


def _judge(found: Predictions, classes: Sequence[str]) -> Evaluation:
    check_targets(found.targets, len(classes), found.names)
    return evaluate_logits(found.logits, found.targets, classes=classes)


def _call(forward: Forward, inputs: Any, arithmetic: Arithmetic) -> Tensor:
    """Logits of a batch; a dict goes in as keyword arguments, a tuple or list as positional."""
    moved = arithmetic.to_device(inputs)
    if isinstance(moved, Mapping):
        return logits_of(forward(**moved))
    if isinstance(moved, tuple | list):
        return logits_of(forward(*moved))
    return logits_of(forward(moved))


@contextmanager
def _batch_errors(batch: Batch) -> Iterator[None]:
    """Say what to do about the two ways in which a sound model refuses a batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"a batch of {len(batch.targets)} samples does not fit into the device's memory. "
            "Use a smaller --batch-size, or --precision bf16."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch holds {len(batch.targets)} sample, but a trainable batch norm needs at "
            "least 2 to take statistics. Choose a --batch-size that leaves no single sample "
            "at the end, or freeze the norms: kind:norm."
        ) from error


@contextmanager
def _ended(hooks: tuple[Hook, ...]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.on_end()


def _non_finite(what: str, names: Sequence[str]) -> NonFiniteLoss:
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return NonFiniteLoss(
        f"{what} on the batch of {named}. No step was made with it. Look at these samples; else "
        "lower the learning rate (--lr) or clip gradients (--clip-norm 1)."
    )


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield
