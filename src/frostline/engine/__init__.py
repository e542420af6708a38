"""The training loop and its hooks. It knows no file and prints nothing.

Every random number depends on the recipe's seed and the epoch alone, so that an epoch can be
run again, or a run continued at any step, with the same bits on the same machine.
"""

from frostline.engine.loop import train_phases as train_phases
from frostline.engine.sharing import even_out as even_out
from frostline.engine.steps import predict as predict
from frostline.engine.steps import summarised as summarised
from frostline.engine.training import Hook as Hook
from frostline.engine.training import Sums as Sums
from frostline.engine.training import Training as Training
