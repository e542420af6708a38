"""Numbers by name that say how good predictions are, and which of two is better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Self, final

from pydantic import TypeAdapter
from torch import Tensor

from frostline.choices import AUTO_MONITOR
from frostline.errors import ConfigError, a_type, nearest
from frostline.tables import Table

Better = Literal["higher", "lower"]

# Where another spelling than the name's own is usual.
_LABELS = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "span_f1": "span F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "mean_iou": "mean IoU",
}
# Words of a name that tell the direction; a name with words of both tells none.
_LOWER = re.compile(
    "loss|err|errors?|mae|mse|rmse|r?msle|s?mape|dist|distance|perplexity|[wce]er|deviance|nll|ece|"
    "brier|hamming|rate|fpr"
)
_HIGHER = re.compile(
    "acc|accuracy|precision|recall|sensitivity|specificity|f[12]|fbeta|au?p|auc|auroc|auprc|map|"
    "m?iou|jaccard|dice|r2|correlation|pearson|spearman|kendall|kappa|mcc|psnr|ssim|bleu|rouge|"
    "similarity|score"
)
# Beside which metrics stand in a run's result.
RESERVED = ("epoch", "samples", "per_class", "confusion", "frozen", "phases", "tables")


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One number and its direction.

    Attributes:
        name: `val_NAME` in a run's files, and what `monitor` asks for.
        value: over all samples; NaN where too few were seen to say.
        better: whether a `higher` or a `lower` value is the better one.

    Raises:
        ConfigError: the direction is none.

    Example:
        >>> fl.Metric("error", 0.25, better="lower")
        Metric(name='error', value=0.25, better='lower')
    """

    name: str
    value: float
    better: Better = "higher"

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ConfigError(
                f"the metric {self.name} is better {self.better!r}. Say 'higher' or 'lower'."
            )

    def beats(self, best: float | None, *, min_change: float = 0.0) -> bool:
        """Whether it is better than the best so far, by `min_change` at least; NaN never is."""
        if best is None or math.isnan(self.value):
            return not math.isnan(self.value)
        gain = best - self.value if self.better == "lower" else self.value - best
        return gain > 0 and gain >= min_change

    def reaches(self, target: float) -> bool:
        """Whether it is as good as `target`; NaN is not."""
        return self.value <= target if self.better == "lower" else self.value >= target


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a task says of a whole data set.

    Attributes:
        metrics: by importance: the first decides which epoch is the best, unless `monitor` names
            another.
        samples: how many were seen.

    Raises:
        ConfigError: a metric has no name, or one that files use for something else.

    Example:
        >>> metrics = fl.Metrics((fl.Metric("f1", 0.5), fl.Metric("recall", 0.7)), samples=16)
        >>> metrics.headline()
        {'f1': 0.5, 'recall': 0.7}
    """

    metrics: tuple[Metric, ...]
    samples: int

    def __post_init__(self) -> None:
        for name in (metric.name for metric in self.metrics):
            if not name or name in RESERVED:
                raise ConfigError(
                    f"a metric is named {name!r}. Give it another name: {', '.join(RESERVED)} "
                    "stand beside metrics in a run's files."
                )

    def __getitem__(self, name: str) -> float:
        return self.metric(name).value

    def metric(self, name: str | None = None) -> Metric:
        """The metric of that name; without one, the first.

        Raises:
            ConfigError: the task has no such metric; names the nearest.
        """
        for metric in self.metrics:
            if name in (None, AUTO_MONITOR, metric.name):
                return metric
        known = [metric.name for metric in self.metrics]
        close = ", ".join(nearest(name or "", known) or known)
        raise ConfigError(f"the task has no metric {name!r}. Nearest: {close or 'it has none'}.")

    def has(self, name: str) -> bool:
        """Whether `metric` would give one."""
        return any(name in (AUTO_MONITOR, metric.name) for metric in self.metrics)

    def headline(self) -> dict[str, float]:
        """All values by name."""
        return {metric.name: metric.value for metric in self.metrics}

    def line(self) -> str:
        """All values in one line for people."""
        return ", ".join(f"{label(n)} {shown(n, value)}" for n, value in self.headline().items())

    def tables(self) -> Sequence[Table]:
        """What people see beside the metrics; nothing, unless a subclass has more to show."""
        return ()

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON: each value by its name, `samples`, and a subclass's own fields."""
        # Not by asdict of it all, which copies each cell of a confusion matrix.
        own = {name: _plain(getattr(self, name)) for name in _own_fields(type(self))}
        return {**self.headline(), **own}

    def read(self, content: Mapping[str, Any]) -> Self:
        """Other metrics of the same task, as their `as_dict` gave them.

        Raises:
            KeyError, ValueError: something is missing or of another kind.
        """
        own = {name: content[name] for name in _own_fields(type(self))}
        metrics = tuple(replace(metric, value=content[metric.name]) for metric in self.metrics)
        kind: Any = type(self)
        found: Self = _reader(kind).validate_python({**own, "metrics": metrics})
        return found


@final
@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch so far.

    Attributes:
        epoch: counted from 1; 0 before the first.
        metric: name of the metric that decides.
        value: of that metric, and `loss` that of the epoch, where there is one.
        top: the best value of any epoch, which need not be of this one.
    """

    epoch: int = 0
    metric: str = ""
    value: float | None = None
    loss: float | None = None
    top: float | None = None

    def after(
        self, epoch: int, found: Metrics, monitor: str, *, min_change: float | None = None
    ) -> Best:
        """The best one once `epoch` gave `found`; itself, where that has no number to go by.

        A tie goes to the lower loss, and then to the earlier epoch. Of a few samples most
        differences are ties: where no metric was asked for, accuracies within half a standard
        error of the best one, or one sample, are equal. By accuracy alone, luck keeps an early
        epoch of a run that goes on to learn (`benchmarks/kept_epoch.py`).

        Args:
            min_change: what makes a value better, with which none is a tie.
        """
        metric = found.metric(monitor)
        if math.isnan(metric.value):
            return self
        loss = found.headline().get("loss")
        if self.value is None or self.top is None:
            return Best(epoch, metric.name, metric.value, loss, metric.value)
        top = metric.value if metric.beats(self.top) else self.top
        if min_change is None:
            is_noisy = monitor == AUTO_MONITOR and metric.name == "accuracy" and loss is not None
            reach = _reach(top, found.samples) if is_noisy else 0.0
            was_near, is_near = (abs(top - value) <= reach for value in (self.value, metric.value))
            is_better = is_near and (not was_near or _is_lower(loss, self.loss))
        else:
            is_better = metric.beats(self.value, min_change=min_change)
        return (
            Best(epoch, metric.name, metric.value, loss, top)
            if is_better
            else replace(self, top=top)
        )


def _reach(share: float, samples: int) -> float:
    """Half the standard error of a share of `samples`, or one of them; exact but for rounding."""
    if not samples:
        return 0.0
    return max(math.sqrt(share * (1 - share) / samples) / 2, 1 / samples + 1e-9)


def _is_lower(loss: float | None, before: float | None) -> bool:
    return loss is not None and before is not None and loss < before


def _own_fields(kind: type[Metrics]) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "metrics"]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [asdict(one) if is_dataclass(one) else one for one in value]  # type: ignore[arg-type]  # no class is in it
    return value


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    """Made once: a run of many epochs has as many records."""
    return TypeAdapter(kind)


def better_of(name: str) -> Better | None:
    """The direction of a metric of a usual name, such as `val_mae`; None of another."""
    words = re.findall(r"[a-z]+[0-9]*", name.lower())
    lower, higher = (any(map(known.fullmatch, words)) for known in (_LOWER, _HIGHER))
    if name.lower().endswith("loss"):
        return "lower"
    return None if lower == higher else "lower" if lower else "higher"


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Counts as shares, float64; of nothing it is 0."""
    return part.double() / whole.clamp(min=1)


def numbered(given: Sequence[str] | int) -> tuple[str, ...]:
    """Names as they are; of how many there are, their numbers."""
    return tuple(map(str, range(given) if isinstance(given, int) else given))


def label(name: str) -> str:
    """A metric's name as people write it."""
    return _LABELS.get(name, name.replace("_", " "))


def shown(name: str, value: float) -> str:
    """A value for people: a loss with four decimals, others with three or what they need."""
    decimals = 4 if name == "loss" else 3
    fits = value == 0 or 10.0**-decimals <= abs(value) < 10**5 or not math.isfinite(value)
    return f"{value:.{decimals}f}" if fits else f"{value:.4g}"


def metrics_from(metrics: Metrics | Mapping[str, float] | None) -> Metrics:
    """Metrics that were given as such, or by name alone, without a number of samples.

    Raises:
        ConfigError: they are none, or a value is no number.
    """
    if isinstance(metrics, Metrics):
        return metrics
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(
            f"the metrics of the epoch are {a_type(metrics)}. Give them by name: {{'loss': 0.5}}."
        )
    found = []
    for name, value in (metrics or {}).items():
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the metric {name} of the epoch is {a_type(value)}. Give a number."
            ) from error
        if name not in RESERVED:
            found.append(Metric(name, number, better_of(name) or "higher"))
    found.sort(key=lambda metric: metric.name != "accuracy")
    return Metrics(tuple(found), samples=0)
