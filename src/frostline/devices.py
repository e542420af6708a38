"""Where a run computes: the device, mixed precision and its gradient scaling, by accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from frostline.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["fp32", "bf16", "fp16"]


def accelerator_for(device: str, precision: Precision = "fp32") -> Accelerator:
    """An accelerator for `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, ...

    Raises:
        ConfigError: there is no such device here.
        TrainingError: started with several processes, which this version does not train with.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = resolve_device(device)
    if wanted.index is not None and wanted.type == "cuda":
        torch.cuda.set_device(wanted)
    # accelerate keeps its state for the whole process, and refuses a second, different run in it.
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    accelerator = Accelerator(mixed_precision=mixed, cpu=wanted.type == "cpu")
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"started with {accelerator.num_processes} processes, but this version trains in one. "
            "Start it without a launcher."
        )
    return accelerator


def resolve_device(device: str) -> torch.device:
    """`auto` is the accelerator torch finds, else the CPU; anything else must be there.

    Raises:
        ConfigError: there is no such device here; names those there are.
    """
    if device == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        wanted = torch.device(device)
        torch.empty(1, device=wanted).item()  # "meta" can be allocated, but not read
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = _accelerator()
        known = f"cpu, {found.type}" if found else "cpu"
        raise ConfigError(
            f"there is no device '{device}' here. Use auto, or one of: {known}."
        ) from error
    return wanted


def _accelerator() -> torch.device | None:
    """What torch finds on this machine, not what it was built for."""
    return torch.accelerator.current_accelerator(check_available=True)
