"""A task as data: what of it is kept with a run, in the `[task]` section of `run.toml`."""

from __future__ import annotations

from typing import Literal, final

from pydantic import BaseModel, Field

from frostline.choices import TaskName as TaskName
from frostline.recipe import Data


@final
class TaskSettings(Data):
    """All that makes a task again with `task_from`.

    `labels` names its classes, labels or targets. `thresholds` are the probabilities from which on
    a label holds; `chosen` says that they were chosen on the validation data. `mean` and `std` are
    those that the targets of a regression are scaled by, empty where they are not or not yet.

    Example:
        >>> from frostline.tasks import TaskSettings, task_from
        >>> task_from(TaskSettings(kind="multilabel", labels=("red", "round"))).width
        2
    """

    __repr__ = BaseModel.__repr__  # it is no name of fl

    kind: TaskName
    labels: tuple[str, ...] = ()
    loss: str = ""
    huber_delta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    thresholds: tuple[float, ...] = ()
    chosen: bool = False
    scale: Literal["standard", "none"] = "standard"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ignore_index: int | None = None
