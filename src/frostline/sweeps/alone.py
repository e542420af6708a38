"""Members that cannot be trained together: each by `fl.fit`, on the same stored features."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor

from frostline.engine import Hook, Training
from frostline.errors import NonFiniteLoss
from frostline.fitting import Run
from frostline.sweeps.ranking import Standing
from frostline.sweeps.results import Member
from frostline.sweeps.settings import Setting
from frostline.tasks import Evaluation


@final
class _Watching(Hook):
    """Keeps which validation samples the best epoch had right, and tells of each epoch."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told = told
        self.hits: Tensor | None = None

    def on_epoch(self, training: Training) -> None:
        found, record = training.found, training.history[-1]
        is_classes = isinstance(record.validation, Evaluation)
        if record.best and found is not None and is_classes:
            self.hits = found.outputs.argmax(dim=1) == found.targets
        self._told(1)


def trained_alone(
    number: int, setting: Setting, fit: Callable[[Hook], Run], told: Callable[[int], None]
) -> Member:
    """The member after its own run.

    Args:
        fit: trains it, with a hook.
        told: called with each epoch that ended.
    """
    watching = _Watching(told)
    try:
        run = fit(watching)
    except NonFiniteLoss:
        return Member(number, setting, 0, None, (), failed="the loss was no number")
    history = tuple(record.validation for record in run.history)
    standing = Standing(run.best.validation, watching.hits)
    return Member(number, setting, run.best.epoch, standing, history)
