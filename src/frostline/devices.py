"""Where a run computes, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.choices import StepPrecision
from frostline.errors import ConfigError


@final
class Compute:
    """Forward, backward and step on one device, in one precision.

    Attributes:
        device: where tensors belong.
        scaler: scales float16 gradients; elsewhere torch leaves it without effect.

    Raises:
        ConfigError: there is no such device here.
    """

    def __init__(self, device: str = "auto", precision: StepPrecision = "fp32") -> None:
        self.device = resolve_device(device)
        # A CPU computes in float32 instead: float16 is slower there, and nothing scales it.
        is_half = precision == "fp16" and self.device.type != "cpu"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_half)
        self._dtype = torch.float16 if is_half else torch.bfloat16 if precision == "bf16" else None

    @property
    def is_mixed(self) -> bool:
        """Whether a forward computes in half precision."""
        return self._dtype is not None

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def step(self, optimizer: torch.optim.Optimizer, *, clip_norm: float | None = None) -> None:
        """One step by scaled gradients, clipped; left out where they overflowed."""
        if clip_norm is not None:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """In it torch computes on so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_device(inputs: Any, device: torch.device) -> Any:
    """A batch's tensors on `device`, in their containers; what holds none stays as it is."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if hasattr(inputs, "to"):  # transformers' batches
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        parts = {name: to_device(part, device) for name, part in inputs.items()}
        return type(inputs)(parts)  # type: ignore[call-arg]  # as dict takes it
    if isinstance(inputs, tuple | list):
        moved = [to_device(part, device) for part in inputs]
        return type(inputs)(*moved) if hasattr(inputs, "_fields") else type(inputs)(moved)
    return inputs


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
