"""Where a batch goes through a model: to make a step, or to be predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from frostline.calling import call_with
from frostline.data import Batch, Batches
from frostline.devices import Compute, to_device
from frostline.engine.joining import joined, places_of
from frostline.engine.sharing import SharedSteps
from frostline.engine.training import Hook, StepSums, Training
from frostline.errors import FreezeError, NonFiniteLoss, TrainingError
from frostline.freezing.modes import modes_kept
from frostline.models import logits_of
from frostline.session import Forward
from frostline.tasks import Metrics, Predictions, Task, loss_of
from frostline.wording import option
from frostline.world import ALONE, World, gathered_names

_SMALL = 1 << 16  # numbers of an output, of which some are kept


@final
@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step's batch gave, of all processes together.

    Attributes:
        sums: gives those of the task, over the batch.
        samples: in it.
    """

    loss: float
    sums: StepSums
    samples: int


@final
class Stepper:
    """Steps of one phase, by the session's optimizer."""

    def __init__(self, training: Training, task: Task) -> None:
        session = training.session
        groups = session.optimizer.param_groups
        self._training = training
        self._task = task
        self._names = [name for group in groups for name in group["param_names"]]
        self._trainable = [p for group in groups for p in group["params"]]
        self._unreached: tuple[str, ...] | None = None
        self._shared: SharedSteps | None = None
        if session.world.size > 1:
            trainable = dict(zip(self._names, self._trainable, strict=True))
            sync_norm = session.recipe.sync_norm
            self._shared = SharedSteps(
                session.world, task, training.model, trainable, sync_norm=sync_norm
            )

    @property
    def unreached(self) -> tuple[str, ...] | None:
        """Trainable parameters that the first batch gave no gradient; None before it."""
        return self._unreached if self._shared is None else self._shared.unreached

    def step(self, forward: Forward, batch: Batch, *, check: bool = True) -> Stepped:
        """One optimizer step.

        Args:
            check: whether the targets are still to be checked; once an epoch has seen them, no.
        """
        if self._shared is not None:
            return self._shared_step(self._shared, forward, batch, check=check)
        compute, targets = self._training.compute, self._targets(batch)
        with _batch_errors(batch):
            with compute.autocast():
                outputs = self._outputs(forward, batch, check=check)
                loss = loss_of(self._task, outputs, targets)
            value = _checked(loss, batch)
            self._update(loss)
        return Stepped(value, self._sums(_detached(outputs), targets), len(targets))

    def _shared_step(
        self, shared: SharedSteps, forward: Forward, batch: Batch, *, check: bool
    ) -> Stepped:
        targets = self._targets(batch)
        alike = self._training.session.drawing_alike(batch.whole)
        with _batch_errors(batch), alike, shared.computing(batch):
            with self._training.compute.autocast():
                outputs = self._outputs(shared.around(forward), batch, check=check)
                part = shared.part(outputs, targets, batch)
            _checked(part.loss, batch)
            with torch.no_grad():
                sums = self._task.sums(_detached(outputs), targets)
            whole = shared.whole(part, sums, batch)
            self._update(whole.own)
        return Stepped(whole.loss, lambda: whole.sums, whole.samples)

    def _sums(self, outputs: Any, targets: Tensor) -> StepSums:
        """To be taken later where that keeps little: of copies, into which no one writes."""
        if isinstance(outputs, Tensor) and outputs.is_cpu and outputs.numel() <= _SMALL:
            return partial(_sums_of, self._task, outputs.clone(), targets.clone())
        found = _sums_of(self._task, outputs, targets)
        return lambda: found

    def _targets(self, batch: Batch) -> Tensor:
        return batch.targets.to(self._training.compute.device, non_blocking=True)

    def _outputs(self, forward: Forward, batch: Batch, *, check: bool) -> Any:
        outputs = self._task.read(_call(forward, batch.inputs, self._training.compute))
        if check:
            self._task.check(_detached(outputs), batch.targets, batch.names)
        return outputs

    def settle(self) -> None:
        """After an epoch, before it is judged: all processes have one model."""
        if self._shared is not None:
            self._shared.even_buffers()

    def close(self) -> None:
        """At the end of the phase: nothing looks at the model's gradients any more."""
        self._shared = None

    def _update(self, loss: Tensor) -> None:
        compute, session = self._training.compute, self._training.session
        compute.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's
        if self._shared is not None:
            self._shared.sum_gradients()
        elif self._unreached is None:
            pairs = zip(self._names, self._trainable, strict=True)
            self._unreached = tuple(name for name, p in pairs if p.grad is None)
        compute.step(session.optimizer, clip_norm=session.recipe.clip_norm)
        for parameter in self._trainable:
            parameter.grad = None


def predict(
    model: nn.Module,
    batches: Batches | list[Batch],
    compute: Compute,
    *,
    task: Task | None = None,
    keep: Literal["outputs", "summary"] = "outputs",
    forward: Forward | None = None,
    hooks: Sequence[Hook] = (),
    world: World = ALONE,
) -> Predictions:
    """Outputs of `model` for data, in eval mode without gradients; every mode is restored.

    Args:
        batches: those of an epoch, or some in a list.
        compute: where `model` is.
        task: reads outputs from what the model returns; by default they are its logits.
        keep: all outputs, or what the task's `summarise` needs of them.
        forward: what batches go through, if not `model` itself: the suffix of a cut.
        world: who shares the batches; all outputs come, in the order of one process.

    Raises:
        NonFiniteLoss: an output is NaN; names its batch.
        ModelError: outputs or targets of several batches do not fit together.
    """
    read = logits_of if task is None else task.read
    outputs: list[Any] = []
    targets: list[Tensor] = []
    names: list[str] = []
    counts: list[int] = []
    given = nullcontext(batches) if isinstance(batches, list) else closing(batches.epoch(0))
    with modes_kept(model), torch.no_grad(), given as every:
        model.eval()
        for number, batch in enumerate(every):
            with compute.autocast(), _batch_errors(batch):
                output = read(_call(model if forward is None else forward, batch.inputs, compute))
            if any(_has_nan(leaf) for leaf in tree_leaves(output)):
                raise _non_finite("the model's output became NaN", batch.names)
            kept: tuple[Any, Tensor] = (output, batch.targets)
            if task is not None and keep == "summary":
                task.check(output, batch.targets.to(compute.device), batch.names)
                kept = task.kept(output, batch.targets.to(compute.device))
            if batch.is_spare:
                kept = tree_map_only(Tensor, _no_rows, kept)
            outputs.append(tree_map_only(Tensor, _as_kept, kept[0]))
            targets.append(kept[1].cpu())
            counts.append(0 if batch.is_spare else len(batch.names))
            names.extend(batch.names[: counts[-1]])
            for hook in hooks:
                hook.on_batch("validate", number + 1, len(batches))
    padding = None if task is None else task.padding
    order, whose = places_of(world, counts), gathered_names(world, names)
    return Predictions(
        joined(outputs, world, None if padding is None else 0, order=order),
        joined(targets, world, padding, order=order),
        whose if order is None else tuple(whose[place] for place in order.tolist()),
    )


def summarised(task: Task, found: Predictions) -> Metrics:
    """What the task says of predictions, checked."""
    task.check(found.outputs, found.targets, found.names)
    return task.summarise(found.outputs, found.targets)


def _checked(loss: Tensor, batch: Batch) -> float:
    """The loss as a number, if a step can be made with it."""
    value = loss.item()
    if not math.isfinite(value):
        raise _non_finite(f"the loss became {value}", batch.names)
    if not loss.requires_grad and not torch.is_grad_enabled():
        raise FreezeError(
            "gradients are switched off around the training, as by torch.no_grad() or "
            "torch.inference_mode(), so nothing would be learned. Train outside of it."
        )
    if not loss.requires_grad:
        raise FreezeError(
            "the loss does not depend on any trainable parameter, so nothing would be "
            "learned. Check that what you train is used in the model's forward, and that no "
            "reentrant checkpointing stands around it (use_reentrant=False)."
        )
    return value


def _call(forward: Forward, inputs: Any, compute: Compute) -> Any:
    return call_with(forward, to_device(inputs, compute.device))


@torch.no_grad()
def _sums_of(task: Task, outputs: Any, targets: Tensor) -> Mapping[str, Tensor]:
    return task.sums(outputs, targets)


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()  # in each step, where walking a tree of one would be felt
    return tree_map_only(Tensor, Tensor.detach, outputs)


def _no_rows(values: Tensor) -> Tensor:
    return values[:0] if values.dim() else values


def _has_nan(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any())


def _as_kept(output: Tensor) -> Tensor:
    """On the CPU; in float32, where it has no more bits than that."""
    if output.is_floating_point() and output.dtype != torch.float64:
        output = output.float()
    return output.cpu()


@contextmanager
def _batch_errors(batch: Batch) -> Iterator[None]:
    """Say what to do about the two ways in which a sound model refuses a batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"a batch of {len(batch.targets)} samples does not fit into the device's memory. "
            f"Use a smaller {option('batch_size')}, or {option('precision', 'bf16')}."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch holds {len(batch.targets)} sample, but a trainable batch norm needs at "
            f"least 2 to take statistics. Choose a {option('batch_size')} that leaves no single "
            "sample at the end, or freeze the norms: kind:norm."
        ) from error


def _non_finite(what: str, names: Sequence[str]) -> NonFiniteLoss:
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return NonFiniteLoss(
        f"{what} on the batch of {named}. No step was made with it. Look at these samples; else "
        f"lower the learning rate ({option('lr')}) or clip gradients ({option('clip_norm', 1)})."
    )
