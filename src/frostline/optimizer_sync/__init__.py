"""Optimizer sync: who joins and leaves after a freeze or thaw; state by parameter name."""

from frostline.optimizer_sync.naming import load_optimizer_state, optimizer_state
from frostline.optimizer_sync.placing import has_rate
from frostline.optimizer_sync.results import Synced
from frostline.optimizer_sync.states import even_out, outgrown
from frostline.optimizer_sync.syncing import sync

__all__ = [
    "Synced",
    "even_out",
    "has_rate",
    "load_optimizer_state",
    "optimizer_state",
    "outgrown",
    "sync",
]
