"""The training loop and its hooks. It knows no file and prints nothing.

Every random number depends on the recipe's seed and the epoch alone, so that an epoch can be
run again, or a run continued at any step, with the same bits on the same machine.
"""

from frostline.engine.judging import evaluate, predict
from frostline.engine.loop import Course, train, train_phases
from frostline.engine.randomness import random_state
from frostline.engine.steps import Fed, Forward, check_targets, make_optimizer
from frostline.engine.training import (
    EpochRecord,
    Hook,
    Left,
    PhaseRecord,
    Position,
    Predictions,
    Proven,
    Spent,
    Training,
    phase_table,
)

__all__ = [
    "Course",
    "EpochRecord",
    "Fed",
    "Forward",
    "Hook",
    "Left",
    "PhaseRecord",
    "Position",
    "Predictions",
    "Proven",
    "Spent",
    "Training",
    "check_targets",
    "evaluate",
    "make_optimizer",
    "phase_table",
    "predict",
    "random_state",
    "train",
    "train_phases",
]
