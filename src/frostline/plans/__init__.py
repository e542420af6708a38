"""Plans: what is trainable when, as data; checked against a model, kept as TOML."""

from frostline.plans.phases import Phase, Until
from frostline.plans.plan import Plan

__all__ = ["Phase", "Plan", "Until"]
