"""Regression: one number or several for each sample, told in their own units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, final, get_args

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from frostline.data import known_targets
from frostline.errors import ConfigError, DataError, ModelError
from frostline.recipe import Recipe
from frostline.tables import Table, columns
from frostline.tasks.metrics import Metric, Metrics
from frostline.tasks.settings import TaskSettings
from frostline.tasks.task import Predictions, Task, check_loss, check_no_classes

RegressionLoss = Literal["mse", "mae", "huber"]


@final
@dataclass(frozen=True, slots=True)
class TargetMetrics:
    """How far off the values of one target are, in its own units.

    Attributes:
        mean, std: of the targets themselves, to hold the errors against.
    """

    name: str
    mae: float
    rmse: float
    r2: float
    mean: float
    std: float


# Of what targets differ by, what rounding to float32 may move them by.
_ROUNDED = 0.01


@final
@dataclass(frozen=True, slots=True)
class RegressionMetrics(Metrics):
    """Metrics of a regression; of several targets the mean over them.

    Attributes:
        per_target: metrics of each target.
    """

    per_target: tuple[TargetMetrics, ...]

    def tables(self) -> Sequence[Table]:
        heads = columns("target", "MAE", "RMSE", "R2", "mean", "std")
        rows = (
            (t.name, *(f"{value:.4g}" for value in (t.mae, t.rmse, t.r2, t.mean, t.std)))
            for t in self.per_target
        )
        return (Table(heads, tuple(rows), title="Per target"),)


@final
class Regression(Task):
    """Outputs are numbers `(batch, targets)`, targets the same or `(batch,)` for a single one.

    The model learns targets less their mean in the training data, over their standard deviation;
    metrics and predictions are in the targets' own units. Of data whose targets come with their
    inputs, mean and deviation are those of 2,000 samples at most, taken evenly.

    Args:
        targets: their names, or how many there are; by default as many as the model has outputs.
        loss: `mse`, `mae` or `huber`, of the scaled targets.
        huber_delta: from where on the Huber loss is linear, in standard deviations.
        scale: `standard`, or `none` to learn the targets as they are.

    Raises:
        ConfigError: an argument is none of these.

    Example:
        >>> task = fl.Regression(["weight"])
        >>> task.summarise(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 2.0])).line()
        'MAE 0.500, RMSE 0.707, R2 -1.000, loss 0.5000'
    """

    def __init__(
        self,
        targets: Sequence[str] | int | None = None,
        *,
        loss: RegressionLoss = "mse",
        huber_delta: float = 1.0,
        scale: Literal["standard", "none"] = "standard",
    ) -> None:
        if scale not in ("standard", "none"):
            raise ConfigError(f"asked to scale targets by {scale!r}. Use 'standard' or 'none'.")
        check_loss(loss, get_args(RegressionLoss), "regression")
        self.names = target_names(targets)
        self.width = len(self.names) or 1
        self._scale, self._loss, self._delta = scale, loss, huber_delta
        self._mean = torch.zeros(self.width)
        self._std = torch.ones(self.width)
        self._is_scaled = False  # once it is known by what

    @classmethod
    def from_settings(cls, settings: TaskSettings) -> Self:
        """As its `settings` say."""
        task = cls(
            settings.labels or None,
            loss=settings.loss or "mse",  # type: ignore[arg-type]  # checked as it is made
            huber_delta=settings.huber_delta,
            scale=settings.scale,
        )
        if settings.mean:
            task._mean, task._std = torch.tensor(settings.mean), torch.tensor(settings.std)
            task._is_scaled = True
        return task

    def settings(self) -> TaskSettings:
        return TaskSettings(
            kind="regression",
            labels=self.names,
            loss=self._loss,
            huber_delta=self._delta,
            scale=self._scale,
            mean=tuple(self._mean.tolist()) if self._is_scaled else (),
            std=tuple(self._std.tolist()) if self._is_scaled else (),
        )

    def targets(self, raw: object, count: int, what: str) -> Tensor:
        """`raw` as float32 `(count, targets)`.

        Raises:
            DataError: they are no numbers, or of another shape.
        """
        found = super().targets(raw, count, what)
        if found.is_complex() or found.dim() > 2:
            raise DataError(
                f"the targets of {what} are {found.dtype} of shape {tuple(found.shape)}. Give a "
                "number for each sample, or a row of them."
            )
        return found.float().view(count, -1)

    def _exact(self, raw: Any, count: int, what: str) -> Tensor:
        """As `targets`, in float64."""
        kept = self.targets(raw, count, what)
        return torch.as_tensor(raw, dtype=torch.float64).view(kept.shape)

    def check(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Make sure that targets are finite and as many as the outputs.

        Raises:
            DataError: they are not; names the sample.
            ModelError: the outputs are no rows of numbers.
        """
        wide = _rows(outputs).shape[1]
        if targets.shape[1] != wide:
            raise DataError(
                f"there are {targets.shape[1]} targets for each sample, but the model gives {wide} "
                "numbers. Give it as many outputs as there are targets."
            )
        bad = (~targets.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            which = f" {self.names[column]!r}" if column < len(self.names) > 1 else ""
            raise DataError(
                f"the target{which} of {names[row]} is {targets[row, column].item()}. Correct it, "
                "or leave the sample out."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._mean, self._std = self._mean.to(outputs.device), self._std.to(outputs.device)
        scaled = (targets.view(len(targets), -1) - self._mean) / self._std
        return self._criterion(_rows(outputs), scaled)

    @property
    def _criterion(self) -> Callable[[Tensor, Tensor], Tensor]:
        if self._loss == "huber":
            return partial(huber_loss, delta=self._delta)
        return mse_loss if self._loss == "mse" else l1_loss

    def weight(self, outputs: Any, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Samples."""
        return targets.new_tensor(len(targets))

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        errors = (self._in_units(outputs, torch.float32) - targets).abs()
        return {"mae": errors.mean(dim=1).sum()}

    def predicted(self, outputs: Tensor) -> Tensor:
        """The outputs in the targets' own units, float64 `(samples, targets)`."""
        return self._in_units(outputs, torch.float64)

    def _in_units(self, outputs: Tensor, dtype: torch.dtype) -> Tensor:
        mean, std = (part.to(outputs.device, dtype) for part in (self._mean, self._std))
        return _rows(outputs).to(dtype) * std + mean

    def summarise(self, outputs: Tensor, targets: Tensor) -> RegressionMetrics:
        """MAE, RMSE and R2 as scikit-learn has them; R2 is NaN of a target that does not vary."""
        count = len(targets)
        rows = targets.view(count, -1).double()
        errors = self.predicted(outputs) - rows
        squares, about = (errors**2).mean(dim=0), ((rows - rows.mean(dim=0)) ** 2).mean(dim=0)
        r2 = torch.where(about > 0, 1 - squares / about, torch.nan)
        mae, rmse = errors.abs().mean(dim=0), squares.sqrt()
        parts = (mae, rmse, r2, rows.mean(dim=0), about.sqrt())
        names = self.names or target_names(rows.shape[1])
        per_target = zip(names, *(part.tolist() for part in parts), strict=True)
        found = [
            Metric("mae", float(mae.mean()), "lower"),
            Metric("rmse", float(rmse.mean()), "lower"),
            Metric("r2", float(r2.nanmean())),
        ]
        if rows.shape[1] > 1:  # in several units, of which the largest would decide
            found.insert(0, found.pop())
        found.append(Metric("loss", float(self.loss(outputs.double(), rows)), "lower"))
        return RegressionMetrics(tuple(found), count, tuple(TargetMetrics(*r) for r in per_target))

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> Regression:
        """With names for the targets, and their mean and deviation in the training data.

        Raises:
            ModelError, DataError: the outputs and targets do not go together, or one is not finite.
            ConfigError: the recipe has class weights or label smoothing.
        """
        check_no_classes(recipe, "regression")
        wide = _rows(first.outputs).shape[1]
        names = self.names or tuple(getattr(data, "label_names", ())) or target_names(wide)
        if wide != len(names):
            raise ModelError(
                f"the model gives {wide} numbers for each sample, but there are {len(names)} "
                "targets. Put a head on it that gives one for each."
            )
        self.check(first.outputs, first.targets, first.names)
        exact, sample_names = known_targets(data, self._exact)
        known = exact.float()
        self.check(first.outputs[:1], known, sample_names)
        _check_told_apart(exact.double(), known.double(), names)
        task = Regression(names, loss=self._loss, huber_delta=self._delta, scale=self._scale)
        if self._scale == "standard" and self._is_scaled and self.names == names:
            task._mean, task._std = self._mean, self._std  # which the head has learnt by
        elif self._scale == "standard":
            task._mean = known.double().mean(dim=0).float()
            std = known.double().std(dim=0, correction=0).float()
            task._std = torch.where(std > 0, std, 1.0)
        if self._scale == "standard":
            task._is_scaled = True
            pairs = zip(task._mean.tolist(), task._std.tolist(), strict=True)
            each = ", ".join(f"{mean:.4g} and {std:.4g}" for mean, std in pairs)
            task.says = (f"Targets   are scaled by their mean and standard deviation: {each}",)
        return task

    def answers(self, outputs: Tensor, *, top: int = 1) -> list[dict[str, object]]:
        """The value of each target by its name, in its own units."""
        del top
        rows = self.predicted(outputs).tolist()
        names = self.names or target_names(len(rows[0]) if rows else 0)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def truths(self, outputs: Tensor, targets: Tensor) -> list[dict[str, object]]:
        rows = targets.view(len(outputs), -1).tolist()
        names = self.names or target_names(len(rows[0]) if rows else 0)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def badness(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The error in standard deviations of the targets, mean over them."""
        errors = self.predicted(outputs) - targets.view(len(targets), -1)
        return (errors.abs() / self._std.to(errors)).mean(dim=1)


def _rows(outputs: Tensor) -> Tensor:
    """Outputs as `(batch, targets)`."""
    rows = outputs.unsqueeze(1) if outputs.dim() == 1 else outputs
    if rows.dim() != 2:
        raise ModelError(
            f"the model gives outputs of shape {tuple(outputs.shape)} for {len(outputs)} samples. "
            "Regression takes a row of numbers for each: (batch, targets)."
        )
    return rows


def target_names(given: Sequence[str] | int | None) -> tuple[str, ...]:
    """Names as they are given; of a number of targets, `target` or `target 0` and on."""
    if given is None:
        return ()
    if isinstance(given, int):
        return ("target",) if given == 1 else tuple(f"target {n}" for n in range(given))
    return tuple(map(str, (given,) if isinstance(given, str) else given))


def _check_told_apart(exact: Tensor, kept: Tensor, names: Sequence[str]) -> None:
    """Refuse targets that are as good as one to a network's float32.

    Raises:
        DataError: what rounding moves them by is not far below what they differ by.
    """
    moved, spread = (exact - kept).abs().amax(dim=0), exact.std(dim=0, correction=0)
    for name, much, own in zip(names, moved.tolist(), spread.tolist(), strict=True):
        if much > _ROUNDED * own > 0:
            raise DataError(
                f"the targets {name} differ by {own:.3g} or so, and float32, which a network "
                f"computes in, moves them by up to {much:.3g}. Subtract what is common to them, as "
                "the first one, or give them in other units."
            )
