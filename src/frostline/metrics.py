"""How good predictions are: loss, accuracy, F1, per class and confused with which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from frostline.tables import Column, Table, columns

_MATRIX_COLUMNS = 60  # of 80, which leaves 20 for the names of the rows


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class: of those called so how many are (precision), of those that are how many found."""

    name: str
    precision: float
    recall: float
    f1: float
    samples: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over a whole data set.

    Attributes:
        loss: mean cross-entropy per sample, in nats, without smoothing or class weights.
        accuracy: share of samples whose most probable class is the right one.
        macro_f1: mean F1 over the classes that occur, each counting the same.
        samples: how many were evaluated.
        per_class: figures of each class, in the classes' order.
        confusion: rows are true classes, columns predicted ones, cells counts.
    """

    loss: float
    accuracy: float
    macro_f1: float
    samples: int
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    def headline(self) -> dict[str, float]:
        """The three figures that stand for the whole."""
        return {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}

    def class_table(self) -> Table:
        """Precision, recall and F1 of each class."""
        heads = columns("class", "precision", "recall", "F1", "samples")
        rows = (
            (c.name, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.samples))
            for c in self.per_class
        )
        return Table(heads, tuple(rows), title="Per class")

    def confusion_table(self, *, most: int = 12) -> Table:
        """The confusion matrix up to `most` classes; beyond, the pairs most often confused.

        Columns are headed by the classes' numbers where names would not fit into 80 columns.
        """
        names = [c.name for c in self.per_class]
        counts = [tuple(map(str, row)) for row in self.confusion]
        if len(names) > most or _columns_wide(counts) > _MATRIX_COLUMNS:
            return self._confused_pairs(names, most)
        heads, told = names, names
        if _columns_wide([*counts, names]) > _MATRIX_COLUMNS:
            heads = [f"{number} {name}" for number, name in enumerate(names)]
            told = [str(number) for number in range(len(names))]
        columns = (Column("true \\ predicted"), *(Column(name, "right") for name in told))
        rows = tuple((head, *row) for head, row in zip(heads, counts, strict=True))
        return Table(columns, rows, title="Confusion")

    def _confused_pairs(self, names: Sequence[str], most: int) -> Table:
        pairs = [
            (count, names[true], names[told])
            for true, row in enumerate(self.confusion)
            for told, count in enumerate(row)
            if true != told and count
        ]
        pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
        rows = tuple((true, told, str(count)) for count, true, told in pairs[:most])
        columns = (Column("true"), Column("predicted"), Column("count", "right"))
        return Table(columns, rows, title="Most often confused")


def _columns_wide(rows: Sequence[Sequence[str]]) -> int:
    """Terminal columns that these cells take, with three between."""
    return sum(3 + max(map(len, cells)) for cells in zip(*rows, strict=True))


def evaluate_logits(logits: Tensor, targets: Tensor, *, classes: Sequence[str]) -> Evaluation:
    """Figures of logits `(samples, classes)` against class indices `(samples,)`.

    By the usual definitions (scikit-learn's, to which the tests compare them): a ratio without
    anything to count is 0, and a class with no sample and no prediction counts in no mean. Counted
    here in a millisecond: torchmetrics took seconds to import and 20 ms for each epoch.
    """
    count = len(classes)
    predicted = logits.argmax(dim=1)
    confusion = torch.bincount(targets * count + predicted, minlength=count**2).view(count, count)
    hits, told, support = confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)
    precision, recall, f1 = (
        _share(hits, told),
        _share(hits, support),
        _share(2 * hits, told + support),
    )
    occurs = (told + support) > 0
    figures = zip(*(part.tolist() for part in (precision, recall, f1, support)), strict=True)
    return Evaluation(
        loss=float(torch.nn.functional.cross_entropy(logits.double(), targets)),
        accuracy=float((predicted == targets).double().mean()),
        macro_f1=float(f1[occurs].mean()),
        samples=len(targets),
        per_class=tuple(ClassFigures(c, *row) for c, row in zip(classes, figures, strict=True)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.clamp(min=1)
