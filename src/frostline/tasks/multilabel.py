"""Multi-label classification: each of several labels holds or not, by binary cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from frostline.data import known_targets
from frostline.errors import ConfigError, DataError, ModelError
from frostline.recipe import Recipe
from frostline.tables import Table, columns
from frostline.tasks.metrics import Metric, Metrics, numbered, share
from frostline.tasks.ranking import average_precision, best_threshold
from frostline.tasks.settings import TaskSettings
from frostline.tasks.task import Predictions, Task


@final
@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """One label: how well its samples are ranked first, and told apart at its threshold.

    Attributes:
        average_precision: NaN without a sample that has the label.
        samples: that have it.
    """

    name: str
    average_precision: float
    precision: float
    recall: float
    f1: float
    threshold: float
    samples: int


@final
@dataclass(frozen=True, slots=True)
class LabelsEvaluation(Metrics):
    """Metrics of a multi-label classifier.

    Attributes:
        per_label: metrics of each label.
    """

    per_label: tuple[LabelMetrics, ...]

    def tables(self) -> Sequence[Table]:
        heads = columns("label", "AP", "precision", "recall", "F1", "threshold", "samples")
        rows = (
            (
                part.name,
                *(f"{v:.3f}" for v in (part.average_precision, part.precision, part.recall)),
                f"{part.f1:.3f}",
                f"{part.threshold:.3f}",
                str(part.samples),
            )
            for part in self.per_label
        )
        return (Table(heads, tuple(rows), title="Per label"),)


@final
class MultiLabel(Task):
    """Outputs are logits `(batch, labels)`, targets 0 or 1 `(batch, labels)`.

    The loss is binary cross-entropy, with the recipe's label smoothing; its class weights weigh
    the samples that have a label by how many lack it.

    Args:
        labels: their names, or how many there are; by default those of the training data, else
            numbers.
        thresholds: the probability from which on a label holds: one for all, one for each, or
            `best`, those with the highest F1 on the validation data; metrics at them are then a
            little better than on new data. Kept with the task.

    Raises:
        ConfigError: a threshold is not between 0 and 1, or there is not one for each label.

    Example:
        >>> task = fl.MultiLabel(["red", "round"])
        >>> task.answers(torch.tensor([[2.0, -2.0]]))
        [{'labels': ['red'], 'probability': {'red': 0.88..., 'round': 0.11...}}]
    """

    def __init__(
        self,
        labels: Sequence[str] | int | None = None,
        *,
        thresholds: float | Sequence[float] | Literal["best"] = 0.5,
    ) -> None:
        self.labels = _label_names(labels)
        self.width = len(self.labels) or 1
        if isinstance(thresholds, str) and thresholds != "best":
            raise ConfigError(f"asked for the thresholds {thresholds!r}. Give numbers, or 'best'.")
        self._chosen = thresholds == "best"
        given = () if thresholds == "best" else thresholds
        self._thresholds = _thresholds(given, len(self.labels))
        self._smoothing = 0.0
        self._weights: Tensor | None = None

    @classmethod
    def from_settings(cls, settings: TaskSettings) -> Self:
        """As its `settings` say; smoothing and class weights are those of a recipe."""
        task = cls(settings.labels or None, thresholds=settings.thresholds or 0.5)
        task._chosen = settings.chosen
        if task._chosen and not settings.thresholds:
            task._thresholds = ()
        return task

    def settings(self) -> TaskSettings:
        thresholds = self._thresholds
        return TaskSettings(
            kind="multilabel", labels=self.labels, thresholds=thresholds, chosen=self._chosen
        )

    def targets(self, raw: object, count: int, what: str) -> Tensor:
        """`raw` as float32 `(count, labels)`.

        Raises:
            DataError: class indices, text, or another number of targets.
        """
        found = super().targets(raw, count, what)
        if found.is_complex() or found.dim() != 2:
            raise DataError(
                f"the targets of {what} have the shape {tuple(found.shape)}. Give a row of 0 and 1 "
                "for each sample, a column for each label; for one class in each sample use the "
                "task 'classification'."
            )
        return found.float()

    def check(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Make sure that targets are 0 or 1, one for each logit.

        Raises:
            DataError: they are not; names the sample.
        """
        if targets.shape[1:] != outputs.shape[1:]:
            raise DataError(
                f"there are {targets.shape[1]} labels for each sample, but the model gives outputs "
                f"of shape {tuple(outputs.shape[1:])}. Give it one logit for each label."
            )
        bad = ((targets != 0) & (targets != 1)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            name = self.labels[column] if self.labels else column
            raise DataError(
                f"the label {name!r} of {names[row]} is {targets[row, column].item():g}. Give 1 "
                "where it holds and 0 where not."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._weights is not None:
            self._weights = self._weights.to(outputs.device)
        targets = targets.to(outputs.dtype)
        smooth = (
            targets * (1 - self._smoothing) + self._smoothing / 2 if self._smoothing else targets
        )
        return binary_cross_entropy_with_logits(outputs, smooth, pos_weight=self._weights)

    def weight(self, outputs: Any, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Samples."""
        return targets.new_tensor(len(targets))

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        right = (outputs >= 0) == (targets > 0.5)
        return {"label_accuracy": right.float().mean(dim=1).sum()}

    def predicted(self, outputs: Tensor) -> Tensor:
        """Which labels hold, bool `(samples, labels)`."""
        return outputs.double().sigmoid() >= self._cuts(outputs.shape[1])

    def _cuts(self, labels: int) -> Tensor:
        found = self._thresholds or (0.5,)
        each = found if len(found) == labels else found[:1] * labels
        return torch.tensor(each, dtype=torch.float64)

    def summarise(self, outputs: Tensor, targets: Tensor) -> LabelsEvaluation:
        """By scikit-learn's definitions; a label that no sample has counts in no mean."""
        chances, truth = outputs.double().sigmoid(), targets > 0.5
        cuts = self._cuts(outputs.shape[1])
        if self._chosen and not self._thresholds:
            pairs = zip(chances.T, truth.T, strict=True)
            best = torch.tensor([best_threshold(*pair) for pair in pairs], dtype=torch.float64)
            cuts = best.clamp(1e-300, 1 - 2**-53)  # between 0 and 1 where chances are at these
        predicted = chances >= cuts
        hits, taken, support = (predicted & truth).sum(0), predicted.sum(0), truth.sum(0)
        precisions = [average_precision(*p) for p in zip(chances.T, truth.T, strict=True)]
        f1 = share(2 * hits, taken + support)
        per_label = zip(
            self.labels or _label_names(len(cuts)),
            precisions,
            *(part.tolist() for part in (share(hits, taken), share(hits, support), f1, cuts)),
            support.tolist(),
            strict=True,
        )
        both = int((taken + support).sum())
        found = (
            Metric(
                "mean_average_precision",
                float(torch.tensor(precisions, dtype=torch.float64).nanmean()),
            ),
            Metric("macro_f1", float(f1[(taken + support) > 0].mean()) if both else float("nan")),
            Metric("micro_f1", 2 * int(hits.sum()) / both if both else float("nan")),
            Metric("subset_accuracy", float((predicted == truth).all(dim=1).double().mean())),
            Metric("loss", _plain_loss(outputs, targets), "lower"),
        )
        return LabelsEvaluation(found, len(targets), tuple(LabelMetrics(*r) for r in per_label))

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> MultiLabel:
        """With the labels' names, and what the recipe says of the loss.

        Raises:
            ModelError: the outputs are no logit for each label.
            DataError: targets do not fit these.
        """
        outputs = first.outputs
        count = outputs.shape[1] if outputs.dim() == 2 else 0
        labels = self.labels or tuple(getattr(data, "label_names", ())) or _label_names(count)
        if outputs.dim() != 2 or count != len(labels):
            raise ModelError(
                f"the model gives outputs of shape {tuple(outputs.shape)} for {len(outputs)} "
                f"samples, but there are {len(labels)} labels. Put a head on it that gives "
                "(batch, labels)."
            )
        task = MultiLabel.from_settings(self.settings().model_copy(update={"labels": labels}))
        task.check(outputs, first.targets, first.names)
        task._smoothing = recipe.label_smoothing
        if recipe.class_weights == "balanced":
            known, names = known_targets(data, self.targets)
            task.check(outputs[:1], known, names)
            have = known.sum(dim=0)
            # Clamped, as a label that all have, or none, is to be learnt too.
            task._weights = (len(known) - have).clamp(min=1) / have.clamp(min=1)
        return task

    def settled(self, best: Metrics) -> MultiLabel:
        """With the thresholds of the best epoch, where they were to be chosen."""
        if not self._chosen or not isinstance(best, LabelsEvaluation):
            return self
        found = tuple(part.threshold for part in best.per_label)
        return MultiLabel.from_settings(self.settings().model_copy(update={"thresholds": found}))

    def answers(self, outputs: Tensor, *, top: int = 1) -> list[dict[str, object]]:
        """The labels that hold, and the probability of each."""
        del top
        labels = self.labels or _label_names(outputs.shape[1])
        chances, holds = outputs.double().sigmoid().tolist(), self.predicted(outputs).tolist()
        return [
            {
                "labels": [name for name, is_so in zip(labels, which, strict=True) if is_so],
                "probability": dict(zip(labels, values, strict=True)),
            }
            for values, which in zip(chances, holds, strict=True)
        ]

    def truths(self, outputs: Tensor, targets: Tensor) -> list[dict[str, object]]:
        labels = self.labels or _label_names(outputs.shape[1])
        held = (targets > 0.5).tolist()
        rows = (zip(labels, row, strict=True) for row in held)
        return [{"labels": [name for name, holds in row if holds]} for row in rows]

    def badness(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over the labels."""
        each = binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), reduction="none"
        )
        return each.mean(dim=1)


def _plain_loss(outputs: Tensor, targets: Tensor) -> float:
    """Without smoothing or weights."""
    return float(binary_cross_entropy_with_logits(outputs.double(), targets.double()))


def _label_names(given: Sequence[str] | int | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return numbered(given)


def _thresholds(given: float | Sequence[float], labels: int) -> tuple[float, ...]:
    """One for each label, or one for all.

    Raises:
        ConfigError: one is not between 0 and 1, or there is another number of them.
    """
    values = (given,) if isinstance(given, int | float) else tuple(given)
    if any(not 0 < value < 1 for value in values):
        raise ConfigError(
            f"asked for the thresholds {', '.join(map(str, values))}. Give probabilities between 0 "
            "and 1, or 'best'."
        )
    if len(values) > 1 and len(values) != labels:
        raise ConfigError(
            f"got {len(values)} thresholds for {labels} labels. Give one for each, or one for all."
        )
    return tuple(map(float, values))
