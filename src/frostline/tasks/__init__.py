"""What is learnt, behind one Protocol: `Task`. Classification is the first that implements it."""

from __future__ import annotations

from frostline.errors import ConfigError, a_type
from frostline.tasks.classification import Classification as Classification
from frostline.tasks.classification import ClassMetrics as ClassMetrics
from frostline.tasks.classification import Evaluation as Evaluation
from frostline.tasks.classification import class_metrics as class_metrics
from frostline.tasks.classification import evaluate_logits as evaluate_logits
from frostline.tasks.metrics import RESERVED as RESERVED
from frostline.tasks.metrics import Best as Best
from frostline.tasks.metrics import Metric as Metric
from frostline.tasks.metrics import Metrics as Metrics
from frostline.tasks.metrics import label as label
from frostline.tasks.metrics import shown as shown
from frostline.tasks.task import Predictions as Predictions
from frostline.tasks.task import Task as Task
from frostline.tasks.task import step_loss as step_loss


def task_of(given: Task | str | None) -> Task:
    """A task from its name; None is classification, and a task is itself.

    Raises:
        ConfigError: there is no task of that name, or it is no task.
    """
    if given is None or given == "classification":
        return Classification()
    if isinstance(given, str):
        raise ConfigError(
            f"there is no task {given!r}. Use 'classification', or give a task of your own: a "
            "class that inherits fl.Task and writes loss and summarise."
        )
    if Task not in type(given).__mro__:
        name = f"the class {given.__name__}" if isinstance(given, type) else a_type(given)
        raise ConfigError(f"the task is {name}. Give an object of a class that inherits fl.Task.")
    return given
