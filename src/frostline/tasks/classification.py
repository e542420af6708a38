"""Classification: one class for each sample, by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from frostline.data import class_targets, known_targets
from frostline.errors import DataError, ModelError
from frostline.recipe import Recipe
from frostline.tables import Table, columns
from frostline.tasks.metrics import Metric, Metrics, numbered, share
from frostline.tasks.settings import TaskSettings
from frostline.tasks.task import Predictions, Task
from frostline.wording import option

_MATRIX_COLUMNS = 60  # of 80, which leaves 20 for the names of the rows
_MOST_CLASSES = 12  # in a matrix in the terminal


@final
@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class: what share of its predictions is right, and of its samples is found."""

    name: str
    precision: float
    recall: float
    f1: float
    samples: int


@final
@dataclass(frozen=True, slots=True)
class Evaluation(Metrics):
    """Metrics of a classifier over a whole data set.

    Attributes:
        per_class: metrics of each class, in the classes' order.
        confusion: rows are true classes, columns predicted ones, cells counts.
    """

    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """Share of samples whose most probable class is the right one."""
        return self["accuracy"]

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur, each counting the same."""
        return self["macro_f1"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy per sample, in nats, without smoothing or class weights."""
        return self["loss"]

    def tables(self) -> Sequence[Table]:
        return self.class_table(), self.confusion_table()

    def class_table(self) -> Table:
        """Precision, recall and F1 of each class."""
        heads = columns("class", "precision", "recall", "F1", "samples")
        rows = (
            (c.name, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.samples))
            for c in self.per_class
        )
        return Table(heads, tuple(rows), title="Per class")

    def confusion_table(self) -> Table:
        """The confusion matrix; of many classes, the pairs most often confused.

        Columns are headed by the classes' numbers where names would not fit into 80 columns.
        """
        names = [c.name for c in self.per_class]
        counts = [tuple(map(str, row)) for row in self.confusion]
        if len(names) > _MOST_CLASSES or _columns_wide(counts) > _MATRIX_COLUMNS:
            return self._confused_pairs(names)
        rows, heads = names, names
        if _columns_wide([*counts, names]) > _MATRIX_COLUMNS:
            rows = [f"{number} {name}" for number, name in enumerate(names)]
            heads = [str(number) for number in range(len(names))]
        cells = tuple((name, *row) for name, row in zip(rows, counts, strict=True))
        return Table(columns("true \\ predicted", *heads), cells, title="Confusion")

    def _confused_pairs(self, names: Sequence[str]) -> Table:
        pairs = [
            (count, names[true], names[predicted])
            for true, row in enumerate(self.confusion)
            for predicted, count in enumerate(row)
            if true != predicted and count
        ]
        pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
        rows = tuple((true, other, str(count)) for count, true, other in pairs[:_MOST_CLASSES])
        return Table(
            columns("true", "predicted", "count", left=2), rows, title="Most often confused"
        )


def _columns_wide(rows: Sequence[Sequence[str]]) -> int:
    """Terminal columns that these cells take, with three between."""
    return sum(3 + max(map(len, cells)) for cells in zip(*rows, strict=True))


@final
class Classification(Task):
    """Outputs are logits `(batch, classes)`, targets class indices `(batch,)`.

    The loss is cross-entropy, with the recipe's label smoothing and class weights.

    Args:
        classes: their names; by default those of the training data, else their numbers.

    Example:
        >>> task = fl.Classification(["ant", "bee"])
        >>> task.loss(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        tensor(0.0181)
    """

    def __init__(self, classes: Sequence[str] | int | None = None) -> None:
        self.classes = () if classes is None else numbered(classes)
        self.width = len(self.classes)
        self._is_open = classes is None
        self._smoothing = 0.0
        self._weights: Tensor | None = None

    @classmethod
    def from_settings(cls, settings: TaskSettings) -> Self:
        """As its `settings` say; smoothing and class weights are those of a recipe."""
        return cls(settings.labels or None)

    def settings(self) -> TaskSettings:
        return TaskSettings(kind="classification", labels=self.classes)

    def targets(self, raw: object, count: int, what: str) -> Tensor:
        """`raw` as int64 `(count,)`; `(count, 1)` is accepted.

        Raises:
            DataError: fractions, one-hot rows, text, or another number of targets.
        """
        return class_targets(raw, count, what)

    def check(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Make sure that class indices count through the logits.

        Raises:
            DataError: one does not; names its sample.
        """
        if not len(targets):
            return
        count = outputs.shape[2 if _is_of_tokens(outputs, targets) else 1]
        lowest, highest = (int(end) for end in targets.aminmax())
        if lowest < 0 or highest >= count:
            outside = (targets < 0) | (targets >= count)
            name = names[int(outside.nonzero()[0, 0])]
            raise DataError(
                f"the label of {name} is {int(targets[outside][0])}, but the model tells {count} "
                f"classes apart: 0 to {count - 1}. Fix the labels or the head."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Also of logits `(batch, classes, ...)` or `(batch, tokens, classes)`, and targets."""
        if _is_of_tokens(outputs, targets):
            outputs, targets = outputs.flatten(0, 1), targets.flatten()
        if self._weights is not None:
            self._weights = self._weights.to(outputs.device)
        return cross_entropy(
            outputs, targets, weight=self._weights, label_smoothing=self._smoothing
        )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each of several models, `(models,)`.

        Args:
            outputs: `(models, batch, classes)`.
            targets: of all one batch, `(1, batch)`, or `(models, batch)`.
        """
        targets = targets.expand(outputs.shape[:2])
        weights = None if self._weights is None else self._weights.to(outputs.device)
        each = cross_entropy(
            outputs.transpose(1, 2),  # classes are few: over them rows are quicker side by side
            targets,
            weight=weights,
            label_smoothing=self._smoothing,
            reduction="none",
        )
        return each.mean(dim=1) if weights is None else each.sum(1) / weights[targets].sum(1)

    def weight(self, outputs: Any, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Targets, or where classes are weighed the sum of their weights."""
        if self._weights is None:
            return targets.new_tensor(targets.numel())
        return self._weights.to(targets.device)[targets].sum()

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"accuracy": (outputs.argmax(dim=1) == targets).sum()}

    def summarise(self, outputs: Tensor, targets: Tensor) -> Evaluation:
        return evaluate_logits(outputs, targets, classes=self.classes or outputs.shape[1])

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> Classification:
        """With the classes' names, and what the recipe says of the loss.

        Raises:
            ModelError: the outputs are no logit for each class.
            DataError: there is one class, or a label is outside them.
        """
        outputs = first.outputs
        if outputs.dim() != 2:
            other = f", or give {option('task', 'segmentation')}" if outputs.dim() == 4 else ""
            raise ModelError(
                f"the model gives outputs of shape {tuple(outputs.shape)} for {len(outputs)} "
                "samples, and classification takes a logit for each class. Put a head on it that "
                f"gives (batch, classes){other}."
            )
        count = outputs.shape[1]
        known = getattr(data, "classes", None) if self._is_open else self.classes
        classes = numbered(count if known is None else known)
        if count != len(classes):
            raise ModelError(
                f"the model gives logits of shape {tuple(outputs.shape)} for {len(outputs)} "
                f"samples, but there are {len(classes)} classes. Put a head on it that gives "
                "(batch, classes)."
            )
        if count < 2:
            raise DataError(
                "there is one class, so nothing to tell apart. Give at least two, with a logit "
                "for each."
            )
        self.check(outputs, first.targets, first.names)
        task = Classification(classes)
        task._smoothing = recipe.label_smoothing
        if recipe.class_weights == "balanced":
            labels, _ = known_targets(data, self.targets)
            task._weights = _weights(labels, count)
        return task

    def answers(self, outputs: Tensor, *, top: int = 1) -> list[dict[str, object]]:
        """The most probable class and its probability, and of more than one a list of them."""
        classes = self.classes or numbered(outputs.shape[1])
        order = outputs.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        chances, places = (part[:, :top].tolist() for part in order)
        found: list[dict[str, object]] = []
        for ranked, values in zip(places, chances, strict=True):
            best = [
                {"class": classes[place], "probability": value}
                for place, value in zip(ranked, values, strict=True)
            ]
            found.append({**best[0], **({"top": best} if top > 1 else {})})
        return found

    def truths(self, outputs: Tensor, targets: Tensor) -> list[dict[str, object]]:
        classes = self.classes or numbered(outputs.shape[1])
        return [{"class": classes[target]} for target in targets.tolist()]

    def badness(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 plus the probability of a wrong class; less that of the right one where it is right."""
        chances, predicted = outputs.double().softmax(dim=1).max(dim=1)
        return torch.where(predicted == targets, -chances, 1 + chances)

    def example_targets(self, outputs: Tensor) -> Tensor:
        """The first class everywhere; of each token for `(batch, tokens, classes)`."""
        shape = outputs.shape[:2] if outputs.dim() == 3 else (len(outputs), *outputs.shape[2:])
        return torch.zeros(shape, dtype=torch.long, device=outputs.device)


def _is_of_tokens(outputs: Tensor, targets: Tensor) -> bool:
    """Whether there is a target for each of `(batch, tokens)`, and logits behind."""
    return outputs.dim() == 3 and targets.shape == outputs.shape[:2]


def _weights(labels: Tensor, count: int) -> Tensor:
    """Inverse class frequencies, scaled so that their mean over the samples is 1."""
    counts = torch.bincount(labels, minlength=count)[:count].clamp(min=1)
    return len(labels) / (count * counts.float())


def evaluate_logits(logits: Tensor, targets: Tensor, *, classes: Sequence[str] | int) -> Evaluation:
    """Metrics of logits `(samples, classes)` against class indices `(samples,)`.

    By the usual definitions (scikit-learn's, to which the tests compare them): a ratio without
    anything to count is 0, and a class with no sample and no prediction counts in no mean. Counted
    here in a millisecond: torchmetrics took seconds to import and 20 ms for each epoch.
    """
    names = numbered(classes)
    count = len(names)
    predicted = logits.argmax(dim=1)
    confusion = torch.bincount(targets * count + predicted, minlength=count**2).view(count, count)
    accuracy = float((predicted == targets).double().mean())
    macro_f1, per_class = class_metrics(confusion, names)
    return Evaluation(
        (
            Metric("accuracy", accuracy),
            Metric("macro_f1", macro_f1),
            Metric("loss", float(cross_entropy(logits.double(), targets)), "lower"),
        ),
        len(targets),
        per_class,
        tuple(map(tuple, confusion.tolist())),
    )


def class_metrics(
    confusion: Tensor, names: Sequence[str]
) -> tuple[float, tuple[ClassMetrics, ...]]:
    """The macro F1 and the metrics of each class, from counts `(true, predicted)`."""
    hits, taken, support = confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)
    f1 = share(2 * hits, taken + support)
    parts = (share(hits, taken), share(hits, support), f1, support)
    rows = zip(names, *(part.tolist() for part in parts), strict=True)
    return float(f1[(taken + support) > 0].mean()), tuple(ClassMetrics(*row) for row in rows)
