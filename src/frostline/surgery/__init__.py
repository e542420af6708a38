"""Surgery on a living optimizer: who joins and leaves after a freeze or thaw, state by name."""

from frostline.surgery.naming import load_optimizer_state, optimizer_state
from frostline.surgery.placing import has_rate
from frostline.surgery.results import Synced
from frostline.surgery.states import even_out, outgrown
from frostline.surgery.syncing import sync

__all__ = [
    "Synced",
    "even_out",
    "has_rate",
    "load_optimizer_state",
    "optimizer_state",
    "outgrown",
    "sync",
]
