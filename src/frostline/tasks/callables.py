"""A task of callables: a loss and metrics that were given to `fit`, of outputs of any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from frostline.errors import ConfigError, a_type
from frostline.recipe import Recipe
from frostline.tasks.metrics import Better, Metric, Metrics, better_of
from frostline.tasks.task import Predictions, Task, check_no_classes

Measure: TypeAlias = Callable[[Any, Any], Any]
"""`(outputs, targets) -> scalar`."""


@final
class CallableTask(Task):
    """What a model returned goes to the callables as it is, with floats in float32.

    Args:
        loss: `(outputs, targets) -> scalar`, to be minimised.
        metrics: the same by name, each of all validation samples at once; the first decides which
            epoch is the best, or else the loss. Which direction is better is known of the usual
            names; of others it is said: `{"cost": ("lower", cost)}`.

    Raises:
        ConfigError: one is no callable, or a direction is not known.

    Example:
        >>> task = CallableTask(torch.nn.L1Loss(), {"mae": torch.nn.L1Loss()})
        >>> task.summarise(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])).line()
        'MAE 0.500, loss 0.5000'
    """

    def __init__(self, loss: Measure, metrics: Mapping[str, Any] | None = None) -> None:
        self._loss = _callable("loss", loss)
        given = {} if metrics is None else metrics
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"metrics is {a_type(metrics)}. Give a dict of callables by name, as "
                "{'mae': lambda outputs, targets: (outputs - targets).abs().mean()}."
            )
        self._metrics = {str(name): _measure(str(name), one) for name, one in given.items()}
        self._example: Tensor | None = None

    def read(self, returned: object) -> Any:
        if isinstance(returned, Tensor):
            return returned.float() if returned.is_floating_point() else returned
        return tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, returned)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        found = self._loss(outputs, targets)
        return cast("Tensor", found)  # whatever it is, `loss_of` looks at it

    def summarise(self, outputs: Any, targets: Tensor) -> Metrics:
        found = [
            Metric(name, _number(name, measure(outputs, targets)), better)
            for name, (better, measure) in self._metrics.items()
        ]
        if "loss" not in self._metrics:
            found.append(Metric("loss", _number("loss", self._loss(outputs, targets)), "lower"))
        return Metrics(tuple(found), len(targets))

    def completed(self, first: Predictions, *, data: object, recipe: Recipe) -> CallableTask:
        """With one target for an example, from which those of an estimate are made.

        Raises:
            ConfigError: the recipe has options that only a classification heeds.
        """
        del data
        check_no_classes(recipe, "a loss of one's own")
        self._example = first.targets[:1].clone()
        return self

    def example_targets(self, outputs: Any) -> Tensor:
        """The first target again and again; without one, zeros like the outputs."""
        if self._example is None or not isinstance(outputs, Tensor):
            return torch.zeros_like(outputs)
        like = self._example.to(outputs.device)
        return like.expand(len(outputs), *like.shape[1:])

    def answers(self, outputs: Any, *, top: int = 1) -> list[dict[str, object]]:
        """All numbers of each sample."""
        return super().answers(outputs, top=top) if isinstance(outputs, Tensor) else []


def _callable(name: str, given: object) -> Measure:
    if not callable(given) or isinstance(given, type):
        found = f"the class {given.__name__}" if isinstance(given, type) else a_type(given)
        raise ConfigError(
            f"{name} is {found}. Give a callable (outputs, targets) -> scalar, as "
            "torch.nn.L1Loss()."
        )
    return cast("Measure", given)


def _measure(name: str, given: Any) -> tuple[Better, Measure]:
    """A metric and its direction, as it was said or as its name tells."""
    said, one = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
    better = better_of(name) if said is None else said
    if better not in ("higher", "lower"):
        raise ConfigError(
            f"whether a higher or a lower {name} is the better one is not known. Say so: "
            f"metrics={{{name!r}: ('lower', {name})}}."
            if said is None
            else f"the metric {name} is better {said!r}. Say 'higher' or 'lower'."
        )
    return better, _callable(f"the metric {name}", one)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the metric {name} gave {a_type(value)} for all validation samples, not one number. "
            "Return a scalar, as errors.mean()."
        ) from error
