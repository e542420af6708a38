"""What beside `Freeze` in a Lightning run would undo it, or train what it does not see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from frostline.errors import ConfigError

_TRIES = (
    "tries {} in steps before the first phase, where nothing is frozen yet, and finds {}. Find it "
    "in a run of its own, on a model that fl.freeze or fl.train_only froze."
)

# By the names of their classes, which both of Lightning's packages have.
_AT_ODDS = {
    "BaseFinetuning": (
        "freezes and thaws by rules of its own. Say what trains when in the plan of Freeze, and "
        "leave the other callback out."
    ),
    "StochasticWeightAveraging": (
        "puts an average in place of the weights, takes statistics of frozen norms anew and sets "
        "learning rates itself. Average what the last phase trains in a callback of your own, by "
        "torch.optim.swa_utils, and write it back after training."
    ),
    "WeightAveraging": (
        "writes averages into the model, whose steps round frozen weights and which mix what "
        "phases trained apart. Average what the last phase trains in a callback of your own, by "
        "torch.optim.swa_utils, and write it back after training."
    ),
    "ModelPruning": (
        "puts masked copies in place of frozen weights too. Prune before training, make it lasting "
        "(torch.nn.utils.prune.remove), and freeze that model."
    ),
    "LearningRateFinder": _TRIES.format("the learning rate", "a rate that suits another training"),
    "BatchSizeFinder": _TRIES.format(
        "the batch size", "less than fits; fl.estimate says what does"
    ),
}
_ONE_DEVICE = "SingleDeviceStrategy"


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Raises ConfigError where one of the Trainer's callbacks is at odds with `Freeze`."""
    for kind in map(type, callbacks):
        for base in kind.__mro__:
            if why := _AT_ODDS.get(base.__name__):
                raise ConfigError(f"{kind.__name__} stands beside Freeze and {why}")


def check_run(strategy: object, module: Any) -> None:
    """Raises ConfigError for several devices, and for steps that the Trainer does not make."""
    kinds = {base.__name__ for base in type(strategy).__mro__}
    if _ONE_DEVICE not in kinds:
        raise ConfigError(
            f"the Trainer runs under {type(strategy).__name__}, whose processes or shards would "
            "not learn of a thaw. As yet Freeze serves one device: Trainer(devices=1, "
            'strategy="auto").'
        )
    if not module.automatic_optimization:
        raise ConfigError(
            f"{type(module).__name__} makes its steps itself (automatic_optimization = False), "
            "where a callback cannot tell steps apart. Use fl.Session in that loop, or let the "
            "Trainer make the steps."
        )


def check_optimizers(optimizers: list[Any], module: nn.Module) -> None:
    """Raises ConfigError unless there is one."""
    # Where there is none, Lightning has one without groups in its place.
    given = [optimizer for optimizer in optimizers if optimizer.param_groups]
    if len(given) != 1:
        raise ConfigError(
            f"{type(module).__name__}.configure_optimizers gave {len(given)} optimizers, and "
            "Freeze looks after one. Return that."
        )
