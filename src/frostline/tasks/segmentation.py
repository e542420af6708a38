"""Semantic segmentation: a class for each pixel, by cross-entropy, Dice or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, final, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, one_hot

from frostline.errors import DataError, ModelError
from frostline.recipe import Recipe
from frostline.tables import Table, columns
from frostline.tasks.metrics import Metric, Metrics, numbered
from frostline.tasks.settings import TaskSettings
from frostline.tasks.task import Predictions, Task, check_loss, check_no_classes

SegmentationLoss = Literal["cross_entropy", "dice", "both"]

_IGNORE = 255
_TALLIES = 3  # pixels of a class that are found, that there are, and that are predicted


@final
@dataclass(frozen=True, slots=True)
class RegionMetrics:
    """One class: how its predicted pixels and its own overlap.

    Attributes:
        iou: intersection over union; NaN of a class with no pixel, predicted or not.
        share: of all pixels that are its own.
    """

    name: str
    iou: float
    dice: float
    precision: float
    recall: float
    share: float


@final
@dataclass(frozen=True, slots=True)
class SegmentationMetrics(Metrics):
    """Metrics over all pixels that are not ignored.

    Attributes:
        per_region: metrics of each class.
    """

    per_region: tuple[RegionMetrics, ...]

    def tables(self) -> Sequence[Table]:
        heads = columns("class", "IoU", "Dice", "precision", "recall", "share of pixels")
        rows = (
            (
                r.name,
                *(f"{v:.3f}" for v in (r.iou, r.dice, r.precision, r.recall)),
                f"{r.share:.1%}",
            )
            for r in self.per_region
        )
        return (Table(heads, tuple(rows), title="Per class"),)


@final
class Segmentation(Task):
    """Outputs are logits `(batch, classes, height, width)`, targets masks of class indices.

    Outputs may be what torchvision's models return, a dict with `out`. Where they are smaller or
    larger than the masks they are interpolated to them, bilinearly. Cross-entropy is the mean over
    pixels, the Dice loss over the classes that occur in the batch; `both` is their sum.

    Args:
        classes: their names, or how many there are; by default those of the training data, else as
            many as the model tells apart.
        loss: `cross_entropy`, `dice` or `both`.
        ignore_index: what stands in a mask where there is no class; such pixels count nowhere.

    Raises:
        ConfigError: there is no such loss.

    Example:
        >>> task = fl.Segmentation(["ground", "tree"])
        >>> logits = torch.zeros(1, 2, 4, 4)
        >>> task.summarise(logits, torch.zeros(1, 4, 4, dtype=torch.long))["pixel_accuracy"]
        1.0
    """

    def __init__(
        self,
        classes: Sequence[str] | int | None = None,
        *,
        loss: SegmentationLoss = "cross_entropy",
        ignore_index: int = _IGNORE,
    ) -> None:
        check_loss(loss, get_args(SegmentationLoss), "segmentation")
        numbered = range(classes) if isinstance(classes, int) else classes
        self.regions = tuple(map(str, numbered or ()))
        self.width = len(self.regions) or 2
        self._loss, self._ignore = loss, ignore_index

    @classmethod
    def from_settings(cls, settings: TaskSettings) -> Self:
        """As its `settings` say."""
        return cls(
            settings.labels or None,
            loss=settings.loss or "cross_entropy",  # type: ignore[arg-type]  # checked as it is made
            ignore_index=_IGNORE if settings.ignore_index is None else settings.ignore_index,
        )

    def settings(self) -> TaskSettings:
        return TaskSettings(
            kind="segmentation", labels=self.regions, loss=self._loss, ignore_index=self._ignore
        )

    def read(self, returned: object) -> Tensor:
        outputs: Tensor = super().read(returned)
        if outputs.dim() != 4 or outputs.shape[1] < 2:
            raise ModelError(
                f"the model gives outputs of shape {tuple(outputs.shape)} for {len(outputs)} "
                "pictures. Segmentation takes logits of two classes or more for each pixel: "
                "(batch, classes, height, width)."
            )
        return outputs

    def targets(self, raw: object, count: int, what: str) -> Tensor:
        """`raw` as whole numbers `(count, height, width)`, bytes where they are such.

        Raises:
            DataError: fractions, masks of several sizes, a channel for each class, or text.
        """
        found = super().targets(raw, count, what)
        if found.dim() == 4 and found.shape[1] == 1:
            found = found.squeeze(1)
        if found.is_floating_point() or found.is_complex() or found.dim() != 3:
            raise DataError(
                f"the masks of {what} are {str(found.dtype).removeprefix('torch.')} of shape "
                f"{tuple(found.shape)}. Give whole numbers (samples, height, width): the class of "
                "each pixel."
            )
        return found if found.dtype == torch.uint8 else found.long()

    def check(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Make sure that masks are of the outputs' shape and hold their classes.

        Raises:
            DataError: they are not; names the sample.
        """
        if outputs.dim() != 4:
            return  # counts of what was checked before
        (tall, wide), (height, width) = outputs.shape[2:], targets.shape[1:]
        if abs(height * wide - width * tall) > max(height, width):  # further off than rounding
            raise DataError(
                f"the mask of {names[0]} is {height} x {width}, but the model's output is {tall} x "
                f"{wide}, which has another shape. Resize and crop masks as their pictures are."
            )
        count = outputs.shape[1]
        wrong = ((targets < 0) | (targets >= count)) & (targets != self._ignore)
        if wrong.any():
            row = int(wrong.flatten(1).any(dim=1).nonzero()[0, 0])
            values = sorted(set(targets[row][wrong[row]].tolist()))
            more = ", ..." if len(values) > 5 else ""
            raise DataError(
                f"the mask of {names[row]} has the values {', '.join(map(str, values[:5]))}{more}, "
                f"but the model tells {count} classes apart: 0 to {count - 1}, and {self._ignore} "
                "to ignore. Fix the mask or the head."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = self._at_size(outputs, targets), targets.long()
        valid = targets != self._ignore
        if self._loss == "dice":
            return _dice_loss(outputs, targets, valid)
        total = cross_entropy(outputs, targets, ignore_index=self._ignore, reduction="sum")
        mean = total / valid.sum().clamp(min=1)
        return mean + _dice_loss(outputs, targets, valid) if self._loss == "both" else mean

    @staticmethod
    def _at_size(outputs: Tensor, targets: Tensor) -> Tensor:
        size = targets.shape[-2:]
        if outputs.shape[-2:] == size:
            return outputs
        return interpolate(outputs, size=size, mode="bilinear", align_corners=False)

    def weight(self, outputs: Any, targets: Tensor) -> Tensor | None:  # noqa: ARG002
        """Pixels that are not ignored; the Dice loss is no mean over them."""
        return (targets != self._ignore).sum() if self._loss == "cross_entropy" else None

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        valid = targets != self._ignore
        right = (self._at_size(outputs, targets).argmax(dim=1) == targets) & valid
        each = right.flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)
        return {"pixel_accuracy": each.sum()}

    def kept(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Counts of pixels by class and the loss of each sample, float64, and no masks.

        `(samples, 3 * classes + 1)`: pixels that are found, that there are and that are predicted,
        then the loss.
        """
        rows = [self._tallies(outputs[n : n + 1], targets[n : n + 1]) for n in range(len(targets))]
        return torch.stack(rows), targets.new_zeros(len(targets))

    def _tallies(self, outputs: Tensor, targets: Tensor) -> Tensor:
        count = outputs.shape[1]
        predicted = self._at_size(outputs, targets).argmax(dim=1)
        valid = targets != self._ignore
        truth, guess = targets[valid].long(), predicted[valid]
        parts = [truth[truth == guess], truth, guess]
        counted = [torch.bincount(part, minlength=count) for part in parts]
        return torch.cat([*counted, self.loss(outputs, targets).view(1)]).double()

    def summarise(self, outputs: Tensor, targets: Tensor) -> SegmentationMetrics:
        """Over all pixels at once; a class without a pixel, predicted or not, counts in no mean.

        `loss` is the mean over the samples of the loss of each.
        """
        tallies = self._counted(outputs, targets)
        hits, support, taken = tallies[:, :-1].sum(dim=0).view(_TALLIES, -1)
        union, pixels = support + taken - hits, float(support.sum())
        iou = torch.where(union > 0, hits / union, torch.nan)
        dice = torch.where(union > 0, 2 * hits / (support + taken), torch.nan)
        precision, recall = hits / taken.clamp(min=1), hits / support.clamp(min=1)
        parts = (iou, dice, precision, recall, support / max(1.0, pixels))
        names = self.regions or numbered(len(hits))
        rows = zip(names, *(part.tolist() for part in parts), strict=True)
        found = (
            Metric("mean_iou", float(iou.nanmean())),
            Metric("mean_dice", float(dice.nanmean())),
            Metric("pixel_accuracy", float(hits.sum()) / pixels if pixels else float("nan")),
            Metric("loss", float(tallies[:, -1].mean()), "lower"),
        )
        return SegmentationMetrics(found, len(tallies), tuple(RegionMetrics(*r) for r in rows))

    def _counted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs if outputs.dim() == 2 else self.kept(outputs, targets)[0]

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> Segmentation:
        """With names for the classes.

        Raises:
            ModelError: the model tells another number of classes apart.
            DataError: a mask does not go with the outputs.
            ConfigError: the recipe has class weights or label smoothing.
        """
        check_no_classes(recipe, "segmentation")
        outputs, masks = first.outputs, first.targets
        count = outputs.shape[1]
        regions = self.regions or tuple(getattr(data, "label_names", ())) or count
        names = Segmentation(regions).regions
        if outputs.dim() != 4 or len(names) != count:
            raise ModelError(
                f"the model gives outputs of shape {tuple(outputs.shape)}, but there are "
                f"{len(names)} classes. Put a head on it that gives (batch, {len(names)}, height, "
                "width)."
            )
        self.check(outputs, masks, first.names)
        task = Segmentation(names, loss=self._loss, ignore_index=self._ignore)
        if outputs.shape[2:] != masks.shape[1:]:
            sizes = (f"{size[0]} x {size[1]}" for size in (outputs.shape[2:], masks.shape[1:]))
            task.says = (f"Outputs   are interpolated to the masks: {' to '.join(sizes)} pixels",)
        return task

    def example_targets(self, outputs: Tensor) -> Tensor:
        """The first class everywhere."""
        shape = (len(outputs), *outputs.shape[2:])
        return torch.zeros(shape, dtype=torch.long, device=outputs.device)

    def predicted(self, outputs: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The class of each pixel, int64 `(samples, height, width)`.

        Args:
            size: height and width of the mask to make; by default the outputs'.
        """
        if size is not None:
            outputs = interpolate(outputs, size=size, mode="bilinear", align_corners=False)
        return outputs.argmax(dim=1)

    def answers(self, outputs: Tensor, *, top: int = 1) -> list[dict[str, object]]:
        """The share of each picture that each class has, of those that it has.

        Of counts as `kept` gives them it is the share of the pixels that are not ignored.
        """
        del top
        if outputs.dim() == 2:
            return self._shares(outputs[:, :-1].view(len(outputs), _TALLIES, -1)[:, 2])
        masks = self.predicted(outputs).flatten(1)
        counts = [torch.bincount(mask, minlength=outputs.shape[1]) for mask in masks]
        return self._shares(torch.stack(counts))

    def truths(self, outputs: Tensor, targets: Tensor) -> list[dict[str, object]]:
        counts = self._counted(outputs, targets)[:, :-1].view(len(outputs), _TALLIES, -1)
        return self._shares(counts[:, 1])

    def _shares(self, counts: Tensor) -> list[dict[str, object]]:
        names = self.regions or numbered(counts.shape[1])
        shares = (counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)).tolist()
        named = (zip(names, row, strict=True) for row in shares)
        return [{"share": {name: share for name, share in row if share}} for row in named]

    def badness(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 less the mean IoU of the sample's classes."""
        counts = self._counted(outputs, targets)[:, :-1].view(len(targets), _TALLIES, -1)
        hits, union = counts[:, 0], counts[:, 1] + counts[:, 2] - counts[:, 0]
        iou = torch.where(union > 0, hits / union.clamp(min=1), torch.nan)
        return 1 - iou.nanmean(dim=1).nan_to_num(1.0)


def _dice_loss(outputs: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """1 less the Dice coefficient of probabilities and masks, over the classes that occur.

    Source: Milletari, Navab and Ahmadi, V-Net, 2016; sums over the batch, without squares.
    """
    count = outputs.shape[1]
    masks = one_hot(torch.where(valid, targets, 0), count).movedim(-1, 1) * valid.unsqueeze(1)
    chances = outputs.softmax(dim=1) * valid.unsqueeze(1)
    over = (0, 2, 3)
    support = masks.sum(dim=over)
    shared = 2 * (chances * masks).sum(dim=over)
    dice = shared / (chances.sum(dim=over) + support).clamp(min=1e-7)
    occurs = support > 0
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)
