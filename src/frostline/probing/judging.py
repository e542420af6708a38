"""What a stage's vectors are worth: a linear probe on them, and its score with an interval."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, final

from torch import Tensor
from torch.nn.functional import one_hot

from frostline.errors import ConfigError, DataError
from frostline.probing.linear import fit_probe
from frostline.records.certainty import r2_interval, share_interval
from frostline.tasks import Classification, Regression, Task

Score = tuple[float, float, float]  # with the ends of its 95 % interval


class Judge(Protocol):
    """Scores probes on validation targets; `metric` is what it tells."""

    metric: str

    @abstractmethod
    def score(self, train: Tensor, validation: Tensor) -> Score:
        """Of vectors `(samples, width)`, to fit a probe on and to judge it on."""


def check_task(task: Task) -> None:
    """Refuse a task without a linear probe.

    Raises:
        ConfigError: it is neither a classification nor a regression.
    """
    if not isinstance(task, Classification | Regression):
        raise ConfigError(
            f"a probe of {type(task).__name__} is not known; stages are probed for a "
            "classification or a regression. Give one of these as the task."
        )


def judge_for(task: Task, train: Tensor, validation: Tensor, names: Sequence[str]) -> Judge:
    """The judge of a task's targets.

    Args:
        names: of the training samples, for messages.
    Raises:
        DataError: all targets to fit on are the same, or one is not finite.
    """
    if isinstance(task, Classification):
        return _OfClasses(train, validation)
    return _OfNumbers(train, validation, names)


@final
class _OfClasses(Judge):
    metric = "accuracy"

    def __init__(self, train: Tensor, validation: Tensor) -> None:
        if not bool((train != train[0]).any()):
            raise DataError("all samples to train on are of one class. A probe needs two.")
        classes = int(max(train.max(), validation.max())) + 1
        self._wanted, self._true = one_hot(train, classes), validation

    def score(self, train: Tensor, validation: Tensor) -> Score:
        told = fit_probe(train, self._wanted)(validation).argmax(dim=1)
        hits, count = int((told == self._true).sum()), len(self._true)
        return hits / count, *share_interval(hits, count)


@final
class _OfNumbers(Judge):
    metric = "R2"

    def __init__(self, train: Tensor, validation: Tensor, names: Sequence[str]) -> None:
        self._wanted, self._true = (
            part.double().reshape(len(part), -1) for part in (train, validation)
        )
        odd = (~self._wanted.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if odd:
            raise DataError(f"the target of {names[odd[0]]} is no finite number. Leave it out.")
        for part, what in ((self._wanted, "train on"), (self._true, "validate")):
            if not bool((part != part[:1]).any()):
                raise DataError(
                    f"all targets to {what} are the same, and R2 has no meaning. Give more samples."
                )

    def score(self, train: Tensor, validation: Tensor) -> Score:
        deviations = self._wanted.std(dim=0, correction=0).clamp(min=1e-300)
        told = fit_probe(train, self._wanted / deviations)(validation) * deviations
        return r2_interval(self._true.numpy(), told.numpy())
