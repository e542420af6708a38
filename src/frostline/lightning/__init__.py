"""Freezing under Lightning's Trainer: `Trainer(callbacks=[Freeze(plan)])`."""

from frostline.lightning.callback import Freeze as Freeze
