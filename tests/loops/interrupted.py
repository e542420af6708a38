"""A run that is interrupted within an epoch and resumed, beside one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import frostline as fl
from frostline.engine import Hook


class Stop(Exception):  # noqa: N818 - it stands for a kill
    """Ends a run."""


class StopAtStep(Hook):
    """Raises after that many optimizer steps."""

    def __init__(self, step: int) -> None:
        self._left = step

    def on_step(self, training: Any) -> None:  # noqa: ARG002 - the hook's form
        self._left -= 1
        if not self._left:
            raise Stop


def stopped_and_resumed(
    make: Callable[[], nn.Module], train: Any, val: Any, folder: Path, **changes: Any
) -> None:
    """Assert that both end with the same bits."""
    options = {"epochs": 3, "lr": 0.01, "batch_size": 8, "features": "off", **changes}
    whole, part, again = make(), make(), make()
    fl.fit(whole, train, val, **options)
    with pytest.raises(Stop):
        fl.fit(part, train, val, out=folder, hooks=[StopAtStep(4)], **options)
    fl.fit(again, train, val, out=folder, resume=True, **options)
    assert fl.fingerprint(again) == fl.fingerprint(whole)
