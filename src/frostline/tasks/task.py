"""What is learnt: what targets are, what is minimised and what is measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from frostline.errors import ConfigError, DataError, a_type, nearest
from frostline.models import logits_of
from frostline.recipe import Recipe
from frostline.tasks.metrics import Metrics
from frostline.tasks.settings import TaskSettings
from frostline.wording import either


@final
@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model made of some samples, on the CPU.

    Attributes:
        outputs: float32, `(samples, ...)`, or what the task keeps of them.
        targets: `(samples, ...)`, or what the task keeps of them.
        names: what to call each sample in messages.
    """

    outputs: Tensor
    targets: Tensor
    names: tuple[str, ...]


class Task(Protocol):
    """One kind of learning. A task of one's own inherits this and writes `loss` and `summarise`.

    Outputs are what `read` finds in what the model returned for a batch: by default a tensor, its
    `logits`, or the first of a tuple; in float32, `(batch, ...)`.

    Attributes:
        width: numbers that the model gives for each sample, pixel or token; a new head has as many.
        classes: names of the classes, for a task whose outputs are a logit for each; the report
            then shows what was confused with what. Kept with a run.
        padding: what stands in the targets where a sample has none, of a task whose samples differ
            in length; None where they do not.
        says: lines for people on what the data made of the task, told before training.

    Example:
        >>> class Distance(fl.Task):
        ...     def loss(self, outputs, targets):
        ...         return (outputs[:, 0] - targets).abs().mean()
        ...     def summarise(self, outputs, targets):
        ...         error = fl.Metric("error", self.loss(outputs, targets).item(), better="lower")
        ...         return fl.Metrics((error,), samples=len(targets))
        >>> fl.fit(model, data, data, task=Distance(), epochs=1).best.validation
        Metrics(metrics=(Metric(name='error', value=..., better='lower'),), samples=16)
    """

    width: int = 1
    classes: tuple[str, ...] = ()
    padding: int | None = None
    says: tuple[str, ...] = ()

    def read(self, returned: object) -> Any:
        """What the model returned for a batch -> the outputs that the other methods take.

        Raises:
            ModelError: there is nothing of the kind in it.
        """
        return logits_of(returned).float()

    def targets(self, raw: object, count: int, what: str) -> Tensor:
        """Targets as a data set gives them -> a tensor `(count, ...)`.

        Args:
            what: names their source in the message.
        Raises:
            DataError: they are no numbers, or another number of them.
        """
        try:
            found = torch.as_tensor(raw)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"the targets of {what} are {type(raw).__name__}, not numbers. Give numbers, or "
                "turn them into some in the task's own targets()."
            ) from error
        if not found.dim() or len(found) != count:
            raise DataError(
                f"the targets of {what} have the shape {tuple(found.shape)} for {count} samples. "
                "Give one for each sample."
            )
        return found.float() if found.dtype == torch.float64 else found

    def check(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Refuse targets that the outputs cannot be held against; called once for each sample.

        Raises:
            DataError: names the sample.
        """
        del outputs, targets, names

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised: its mean over a batch, a scalar."""
        ...

    def weight(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """What the loss of a batch is the mean over, a scalar: samples, pixels, tokens.

        Of a batch that several processes share, each computes the loss of its part and weighs it
        by this. None, as by default, where the loss is no such mean: then the outputs of all are
        brought together for it, which is right for any loss and slow for large outputs.
        """
        del outputs, targets
        return None

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Metrics to follow while training, each summed over a batch; by default none.

        Called in each step, so let it be cheap, and leave the sums on their device.
        """
        del outputs, targets
        return {}

    def kept(self, outputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """What of a batch `summarise` needs, sample by sample, where outputs are large.

        By default the outputs and targets themselves; `summarise` and `badness` take what this
        gives as well as these.
        """
        return outputs, targets

    @abstractmethod
    def summarise(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """How good the outputs for a whole data set are; on the CPU.

        Called on a few samples before training, too: what needs more of them is NaN there.
        """
        ...

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> Task:
        """This task with what was left open filled in before training; by default as it is.

        Args:
            first: of a few samples of the validation data.
            data: that will be trained on, as it was given to `fit`.
        Raises:
            ModelError, DataError, ConfigError: they do not go together.
        """
        self.check(first.outputs, first.targets, first.names)
        del data, recipe
        return self

    def settled(self, best: Metrics) -> Task:
        """This task with what the best epoch's metrics decided; by default as it is."""
        del best
        return self

    def settings(self) -> TaskSettings | None:
        """What `task_from` makes it from again; None for a task of one's own."""
        return None

    def answers(self, outputs: Any, *, top: int = 1) -> list[dict[str, object]]:
        """What is told of each sample, in plain values for JSON.

        Args:
            top: how many of the most probable classes, where there are such.
        """
        del top
        return [{"output": output} for output in outputs.tolist()]

    def judged_answers(self, outputs: Any, targets: Tensor) -> list[dict[str, object]]:
        """What is told of each sample beside `truths`; by default `answers`."""
        del targets
        return self.answers(outputs)

    def truths(self, outputs: Any, targets: Tensor) -> list[dict[str, object]]:
        """What `answers` should have told of each sample, under the same names."""
        del outputs
        return [{"target": target} for target in targets.tolist()]

    def badness(self, outputs: Any, targets: Tensor) -> Tensor:
        """How wrong each output is, `(samples,)`; by default its loss as a batch of one."""
        rows = (slice(n, n + 1) for n in range(len(targets)))
        return torch.stack([self.loss(outputs[row], targets[row]).detach() for row in rows])

    def example_targets(self, outputs: Tensor) -> Tensor:
        """Targets that could belong to `outputs`, for a step of which only the cost counts."""
        return torch.zeros_like(outputs)


def step_loss(task: Task, output: Any, targets: Tensor | None = None) -> Tensor:
    """What a step minimises, from all that a model returned.

    Args:
        targets: on the model's device; without them, the task's example targets.
    Raises:
        ModelError: the output holds no tensor where logits are looked for.
        ConfigError: the task's loss is no number to go backwards from.
    """
    outputs = task.read(output)
    return loss_of(task, outputs, task.example_targets(outputs) if targets is None else targets)


def loss_of(task: Task, outputs: Any, targets: Tensor) -> Tensor:
    """The task's loss, known to be one number.

    Raises:
        ConfigError: it is none to go backwards from.
    """
    loss = task.loss(outputs, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise ConfigError(
            f"the loss of {type(task).__name__} gave {a_type(loss)}{shape} for a batch, not one "
            "number to minimise. Return a scalar tensor computed from the outputs, as their "
            "mean error: errors.mean()."
        )
    return loss


def check_loss(given: object, known: Sequence[str], what: str) -> None:
    """Refuse a loss that a task does not have.

    Raises:
        ConfigError: names the nearest.
    """
    if given not in known:
        close = nearest(str(given), known, count=1)
        hint = f" (nearest: {close[0]!r})" if close else ""
        raise ConfigError(
            f"{what} has no loss {given!r}{hint}. Use {', '.join(map(repr, known))}"
            + either("; a loss of your own goes to fl.fit(..., loss=...).", ".")
        )


def check_no_classes(recipe: Recipe, what: str) -> None:
    """Refuse options of a recipe that only tasks with classes heed.

    Raises:
        ConfigError: names the option.
    """
    given: Any = {"class_weights": recipe.class_weights, "label_smoothing": recipe.label_smoothing}
    for name, value in given.items():
        if value not in ("none", 0.0):
            raise ConfigError(f"{what} heeds no {name}. Leave it out.")
