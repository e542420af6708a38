"""How long a call takes on its device."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from frostline.tuning.realising import Realised


def timed(run: Realised, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], float]:
    """The outputs of one call and its wall-clock seconds, the device's work included."""
    device = inputs[0].device
    _wait_for(device)
    start = time.perf_counter()
    outputs = run(*inputs)
    _wait_for(device)
    return outputs, time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
