"""Where a run computes, and in which precision; mixed precision and its scaling by accelerate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from frostline.choices import StepPrecision
from frostline.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator


@final
class MixedPrecision:
    """Forward, backward and step on one device.

    Attributes:
        device: where tensors belong.

    Raises:
        ConfigError: there is no such device here.
        TrainingError: started with several processes, which this version does not train with.
    """

    def __init__(self, device: str, precision: StepPrecision = "fp32") -> None:
        self.device = resolve_device(device)
        _refuse_several_processes()
        # Plain float32 needs nothing of accelerate, whose import takes half a second.
        self._mixed = None if precision == "fp32" else _accelerator_for(self.device, precision)
        self._optimizer: Any = None

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward."""
        return nullcontext() if self._mixed is None else self._mixed.autocast()

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer that `step` steps."""
        self._optimizer = optimizer
        if self._mixed is not None:
            self._optimizer = self._mixed.prepare_optimizer(optimizer)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Scales float16 gradients; None where nothing does."""
        return None if self._mixed is None else self._mixed.scaler

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled where the precision asks for it."""
        if self._mixed is None:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        else:
            self._mixed.backward(loss)

    def clip(self, parameters: Sequence[Tensor], norm: float) -> None:
        """Clip the gradients' norm."""
        if self._mixed is None:
            torch.nn.utils.clip_grad_norm_(parameters, norm)
        else:
            self._mixed.clip_grad_norm_(parameters, norm)

    def step(self) -> None:
        """One optimizer step, left out where scaled gradients overflowed."""
        self._optimizer.step()

    def to_device(self, inputs: Any) -> Any:
        """A batch's tensors on the device, in their containers."""
        return to_device(inputs, self.device)


def to_device(inputs: Any, device: torch.device) -> Any:
    """A batch's tensors on `device`, in their containers."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if type(inputs) in (tuple, list):
        return type(inputs)([to_device(part, device) for part in inputs])
    from accelerate.utils import send_to_device

    return send_to_device(inputs, device, non_blocking=True)


def autocast(model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Around a forward of `model` in `bf16` or `fp16`; of nothing in `fp32`."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device_of(model).type, dtype=dtype, enabled=dtype is not None)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


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


def _accelerator_for(wanted: torch.device, precision: StepPrecision) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if wanted.index is not None and wanted.type == "cuda":
        torch.cuda.set_device(wanted)
    # accelerate keeps its state for the whole process, and refuses a second, different run in it.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=precision, cpu=wanted.type == "cpu")


def _refuse_several_processes() -> None:
    """As launchers announce them, or as they were set up already."""
    count = int(os.environ.get("WORLD_SIZE", "1") or 1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
    if count > 1:
        raise TrainingError(
            f"started with {count} processes, but this version trains in one. "
            "Start it without a launcher."
        )
