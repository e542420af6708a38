"""Token classification: a tag for each token, as in named-entity recognition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from frostline.errors import DataError, ModelError
from frostline.recipe import Recipe
from frostline.tables import Table, columns
from frostline.tasks.classification import ClassMetrics, class_metrics
from frostline.tasks.metrics import Metric, Metrics, numbered
from frostline.tasks.settings import TaskSettings
from frostline.tasks.task import Predictions, Task

_IGNORE = -100

Span = tuple[int, int, int, str]
"""Sample, first token, token behind the last, and kind."""


@final
@dataclass(frozen=True, slots=True)
class SpanMetrics:
    """One kind of span: whole spans with the right kind count, and nothing else."""

    name: str
    precision: float
    recall: float
    f1: float
    samples: int


@final
@dataclass(frozen=True, slots=True)
class TokensEvaluation(Metrics):
    """Metrics of a tagger over all tokens that have a tag.

    Attributes:
        per_tag: metrics of each tag, token by token.
        per_kind: of each kind of span, where the tags are B-, I- and O.
    """

    per_tag: tuple[ClassMetrics, ...]
    per_kind: tuple[SpanMetrics, ...]

    def tables(self) -> Sequence[Table]:
        spans = (_table("kind", "Per kind of span", self.per_kind),) if self.per_kind else ()
        return (*spans, _table("tag", "Per tag", self.per_tag))


def _table(heading: str, title: str, parts: Sequence[ClassMetrics | SpanMetrics]) -> Table:
    heads = columns(heading, "precision", "recall", "F1", "count")
    rows = (
        (p.name, f"{p.precision:.3f}", f"{p.recall:.3f}", f"{p.f1:.3f}", str(p.samples))
        for p in parts
    )
    return Table(heads, tuple(rows), title=title)


@final
class Tokens(Task):
    """Outputs are logits `(batch, tokens, tags)`, targets tags `(batch, tokens)`, or -100.

    The loss is cross-entropy, its mean over the tokens that have a tag, with the recipe's label
    smoothing. Batches may be padded to different lengths.

    Args:
        tags: their names, or how many there are; by default those of the training data, else
            numbers. Where they are `O`, `B-KIND` and `I-KIND`, whole spans are judged, too.

    Example:
        >>> task = fl.Tokens(["O", "B-PER", "I-PER"])
        >>> task.answers(torch.eye(3)[None, [1, 2, 0]])
        [{'tags': ['B-PER', 'I-PER', 'O']}]
    """

    padding = _IGNORE

    def __init__(self, tags: Sequence[str] | int | None = None) -> None:
        self.tags = tuple(map(str, (range(tags) if isinstance(tags, int) else tags) or ()))
        self.width = len(self.tags) or 2
        self._smoothing = 0.0

    @classmethod
    def from_settings(cls, settings: TaskSettings) -> Self:
        """As its `settings` say; smoothing is that of a recipe."""
        return cls(settings.labels or None)

    def settings(self) -> TaskSettings:
        return TaskSettings(kind="tokens", labels=self.tags)

    @property
    def has_spans(self) -> bool:
        """Whether the tags are those of spans."""
        return any(tag[:2] == "B-" for tag in self.tags) and all(
            tag == "O" or tag[:2] in ("B-", "I-") for tag in self.tags
        )

    def targets(self, raw: object, count: int, what: str) -> Tensor:
        """`raw` as int64 `(count, tokens)`; rows of different lengths are filled up with -100.

        Raises:
            DataError: fractions, text, or another number of rows.
        """
        if isinstance(raw, list | tuple) and len({len(row) for row in raw if _is_row(row)}) > 1:
            raw = pad_sequence(
                [torch.as_tensor(row) for row in raw], batch_first=True, padding_value=_IGNORE
            )
        found = super().targets(raw, count, what)
        if found.is_floating_point() or found.is_complex() or found.dim() != 2:
            raise DataError(
                f"the targets of {what} are {str(found.dtype).removeprefix('torch.')} of shape "
                f"{tuple(found.shape)}. Give whole numbers (samples, tokens): the tag of each "
                "token, -100 where it has none."
            )
        return found.long()

    def check(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Make sure that there is a target for each token, and that tags count through the logits.

        Raises:
            DataError: there is not, or one does not; names the sample.
        """
        count, length = outputs.shape[2], outputs.shape[1]
        behind = targets[:, length:] != _IGNORE
        if targets.shape[1] < length or behind.any():
            name = names[int(behind.any(dim=1).nonzero()[0, 0])] if behind.any() else names[0]
            raise DataError(
                f"{name} has {targets.shape[1]} tags, but the model gives an output for "
                f"{length} tokens. Give a tag for each token as the tokenizer makes them, and "
                "-100 for those without."
            )
        wrong = ((targets < 0) | (targets >= count)) & (targets != _IGNORE)
        if wrong.any():
            row, token = wrong.nonzero()[0].tolist()
            raise DataError(
                f"token {token} of {names[row]} has the tag {int(targets[row, token])}, but the "
                f"model tells {count} tags apart: 0 to {count - 1}, and -100 for none. Fix the "
                "tags or the head."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        targets = targets[:, : outputs.shape[1]]  # padded to the longest of more than this batch
        total = cross_entropy(
            outputs.flatten(0, 1),
            targets.flatten(),
            ignore_index=_IGNORE,
            label_smoothing=self._smoothing,
            reduction="sum",
        )
        return total / (targets != _IGNORE).sum().clamp(min=1)

    def weight(self, outputs: Any, targets: Tensor) -> Tensor:
        """Tokens that have a tag."""
        return (targets[:, : outputs.shape[1]] != _IGNORE).sum()

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        targets = targets[:, : outputs.shape[1]]
        valid = targets != _IGNORE
        right = ((outputs.argmax(dim=2) == targets) & valid).sum(dim=1)
        return {"token_accuracy": (right / valid.sum(dim=1).clamp(min=1)).sum()}

    def summarise(self, outputs: Tensor, targets: Tensor) -> TokensEvaluation:
        """By token as scikit-learn counts, by span as the CoNLL-2003 shared task does."""
        targets = targets[:, : outputs.shape[1]]
        valid, predicted = targets != _IGNORE, outputs.argmax(dim=2)
        count, truth, guess = outputs.shape[2], targets[valid], predicted[valid]
        names = self.tags or numbered(count)
        confusion = torch.bincount(truth * count + guess, minlength=count**2).view(count, count)
        macro_f1, per_tag = class_metrics(confusion, names)
        accuracy = float((truth == guess).double().mean())
        loss = cross_entropy(outputs[valid].double(), truth)
        found = [
            Metric("macro_f1", macro_f1),
            Metric("token_accuracy", accuracy),
            Metric("loss", float(loss), "lower"),
        ]
        kinds: tuple[SpanMetrics, ...] = ()
        if self.has_spans:
            there, taken = (set(self._spans(rows, valid)) for rows in (targets, predicted))
            kinds = tuple(_of_kind(kind, there, taken) for kind in sorted(_kinds(self.tags)))
            f1 = _of_kind("", there, taken).f1
            found.insert(0, Metric("span_f1", f1))
        return TokensEvaluation(tuple(found), len(targets), per_tag, kinds)

    def _spans(self, tags: Tensor, valid: Tensor) -> Iterator[Span]:
        """Spans of all samples; an `I-` that continues nothing begins one, as in CoNLL-2003."""
        for sample, (row, has_tag) in enumerate(zip(tags, valid, strict=True)):
            names = [self.tags[tag] for tag in row[has_tag].tolist()]
            start, kind = 0, ""
            for token, name in enumerate([*names, "O"]):
                prefix, _, now = name.partition("-")
                if kind and (prefix != "I" or now != kind):
                    yield sample, start, token, kind
                    kind = ""
                if now and not kind:
                    start, kind = token, now

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> Tokens:
        """With names for the tags, and the recipe's smoothing.

        Raises:
            ModelError: the outputs are no logit for each tag of each token.
            DataError: the targets do not fit these.
        """
        outputs = first.outputs
        count = outputs.shape[2] if outputs.dim() == 3 else 0
        own = getattr(data, "label_names", ()) or getattr(data, "classes", ()) or ()
        names = Tokens(self.tags or tuple(own) or count).tags
        if count < 2 or count != len(names):
            raise ModelError(
                f"the model gives outputs of shape {tuple(outputs.shape)}, but there are "
                f"{len(names)} tags. Put a head on it that gives (batch, tokens, tags)."
            )
        task = Tokens(names)
        task.check(outputs, first.targets, first.names)
        task._smoothing = recipe.label_smoothing
        return task

    def example_targets(self, outputs: Tensor) -> Tensor:
        """The first tag everywhere."""
        return torch.zeros(outputs.shape[:2], dtype=torch.long, device=outputs.device)

    def predicted(self, outputs: Tensor) -> Tensor:
        """The tag of each token, int64 `(samples, tokens)`."""
        return outputs.argmax(dim=2)

    def answers(self, outputs: Tensor, *, top: int = 1) -> list[dict[str, object]]:
        """The tag of each token, those of padding too."""
        del top
        names = self.tags or numbered(outputs.shape[2])
        return [{"tags": [names[tag] for tag in row]} for row in self.predicted(outputs).tolist()]

    def judged_answers(self, outputs: Tensor, targets: Tensor) -> list[dict[str, object]]:
        """The tag of each token that has a true one."""
        targets = targets[:, : outputs.shape[1]]
        taken = self.predicted(outputs).where(targets != _IGNORE, _IGNORE)
        return self.truths(outputs, taken)

    def truths(self, outputs: Tensor, targets: Tensor) -> list[dict[str, object]]:
        """The tag of each token that has one."""
        names = self.tags or numbered(outputs.shape[2])
        return [{"tags": [names[tag] for tag in row if tag >= 0]} for row in targets.tolist()]


def _is_row(row: object) -> bool:
    return isinstance(row, list | tuple) or (isinstance(row, Tensor) and row.dim() == 1)


def _kinds(tags: Sequence[str]) -> set[str]:
    return {tag[2:] for tag in tags if tag != "O"}


def _of_kind(kind: str, there: set[Span], taken: set[Span]) -> SpanMetrics:
    """Of spans of one kind; of all, where it is empty."""
    own, found = ({s for s in spans if kind in ("", s[3])} for spans in (there, taken))
    hits = len(own & found)
    precision, recall = hits / max(1, len(found)), hits / max(1, len(own))
    f1 = 2 * hits / max(1, len(found) + len(own))
    return SpanMetrics(kind, precision, recall, f1, len(own))
