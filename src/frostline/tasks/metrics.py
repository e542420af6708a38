"""Numbers by name that say how good predictions are, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Self, final

from pydantic import TypeAdapter

from frostline.errors import ConfigError, nearest
from frostline.tables import Table

Better = Literal["higher", "lower"]

_LABELS = {"macro_f1": "macro F1"}  # where another spelling than the name's own is usual
_RESERVED = ("epoch", "samples", "better")  # beside which metrics stand in a run's files


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One number and its direction.

    Attributes:
        name: a Python name; `val_NAME` in a run's files, and what `monitor` asks for.
        value: over all samples; NaN where too few were seen to say.
        better: whether a `higher` or a `lower` value is the better one.

    Raises:
        ConfigError: the name or the direction cannot be.
    """

    name: str
    value: float
    better: Better = "higher"

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in _RESERVED:
            raise ConfigError(
                f"a metric is named {self.name!r}. Use letters, digits and _, as in mean_error; "
                f"{', '.join(_RESERVED)} have a meaning of their own."
            )
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
    """

    metrics: tuple[Metric, ...]
    samples: int

    def __getitem__(self, name: str) -> float:
        return self.metric(name).value

    def metric(self, name: str | None = None) -> Metric:
        """The metric of that name; without one, the first.

        Raises:
            ConfigError: the task has no such metric; names the nearest.
        """
        for metric in self.metrics:
            if name in (None, metric.name):
                return metric
        known = [metric.name for metric in self.metrics]
        close = ", ".join(nearest(name or "", known) or known)
        raise ConfigError(f"the task has no metric {name!r}. Nearest: {close or 'it has none'}.")

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


def label(name: str) -> str:
    """A metric's name as people write it."""
    return _LABELS.get(name, name.replace("_", " "))


def shown(name: str, value: float) -> str:
    """A value for people: a loss with four decimals, others with three or what they need."""
    decimals = 4 if name == "loss" else 3
    fits = value == 0 or 10.0**-decimals <= abs(value) < 10**5 or not math.isfinite(value)
    return f"{value:.{decimals}f}" if fits else f"{value:.4g}"
