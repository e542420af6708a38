"""Freezing under transformers' Trainer: `Trainer(callbacks=[Freeze(plan)])`."""

from frostline.transformers.callback import Freeze as Freeze
