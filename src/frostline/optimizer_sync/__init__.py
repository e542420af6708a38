"""Optimizer sync: what joins and leaves after a freeze or thaw; state by parameter name."""

from frostline.optimizer_sync.naming import load_optimizer_state as load_optimizer_state
from frostline.optimizer_sync.naming import optimizer_state as optimizer_state
from frostline.optimizer_sync.placing import has_rate as has_rate
from frostline.optimizer_sync.regrouping import group_names as group_names
from frostline.optimizer_sync.regrouping import regroup as regroup
from frostline.optimizer_sync.results import Synced as Synced
from frostline.optimizer_sync.states import even_out as even_out
from frostline.optimizer_sync.states import outgrown as outgrown
from frostline.optimizer_sync.syncing import sync as sync
