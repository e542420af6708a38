"""What is learnt, behind one Protocol: `Task`, and the tasks that implement it."""

from __future__ import annotations

from frostline.errors import ConfigError, a_type, nearest
from frostline.tasks.callables import CallableTask as CallableTask
from frostline.tasks.classification import Classification as Classification
from frostline.tasks.classification import ClassMetrics as ClassMetrics
from frostline.tasks.classification import Evaluation as Evaluation
from frostline.tasks.classification import class_metrics as class_metrics
from frostline.tasks.classification import evaluate_logits as evaluate_logits
from frostline.tasks.metrics import Best as Best
from frostline.tasks.metrics import Metric as Metric
from frostline.tasks.metrics import Metrics as Metrics
from frostline.tasks.metrics import better_of as better_of
from frostline.tasks.metrics import label as label
from frostline.tasks.metrics import shown as shown
from frostline.tasks.multilabel import MultiLabel as MultiLabel
from frostline.tasks.regression import Regression as Regression
from frostline.tasks.segmentation import Segmentation as Segmentation
from frostline.tasks.settings import TaskName as TaskName
from frostline.tasks.settings import TaskSettings as TaskSettings
from frostline.tasks.task import Predictions as Predictions
from frostline.tasks.task import Task as Task
from frostline.tasks.task import loss_of as loss_of
from frostline.tasks.task import step_loss as step_loss
from frostline.tasks.tokens import Tokens as Tokens

_Kind = type[Classification | MultiLabel | Regression | Segmentation | Tokens]

_KINDS: dict[str, _Kind] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
    "tokens": Tokens,
}


def task_of(given: Task | str | None) -> Task:
    """A task from its name; None is classification, and a task is itself.

    Raises:
        ConfigError: there is no task of that name, or it is no task.
    """
    if given is None:
        return Classification()
    if isinstance(given, str):
        if given in _KINDS:
            return _KINDS[given]()
        close = nearest(given, list(_KINDS), count=1)
        hint = f" (nearest: {close[0]!r})" if close else ""
        raise ConfigError(
            f"there is no task {given!r}{hint}. Use {', '.join(map(repr, _KINDS))}, give a loss of "
            "your own, loss=callable, or a task: an object of a class that inherits fl.Task and "
            "writes loss and summarise."
        )
    if Task not in type(given).__mro__:
        name = f"the class {given.__name__}" if isinstance(given, type) else a_type(given)
        raise ConfigError(f"the task is {name}. Give an object of a class that inherits fl.Task.")
    return given


def task_from(settings: TaskSettings) -> Task:
    """The task that `settings` were kept of."""
    return _KINDS[settings.kind].from_settings(settings)
