"""A traced step with its prices: memory and time by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn

from frostline.backward import is_lean
from frostline.calling import call_with
from frostline.cutting.outside import frozen_versions, writes_into, written_since
from frostline.devices import autocast
from frostline.errors import ConfigError
from frostline.estimates.measuring import StepCost, measure_step
from frostline.estimates.pricing import Prices
from frostline.estimates.results import LayerCost, Memory, Step
from frostline.estimates.skeleton import real_batch, skeleton
from frostline.estimates.tracing import OpRecorder, StepTrace, runnable, uncollected
from frostline.freezing.modes import modes_kept
from frostline.tasks import Classification, Task

# Of each optimizer: bytes of state for each byte of a gradient, and for each tensor besides: Adam
# and the like count steps, in a float32 each.
STATE_BYTES = {"adamw": (2, 4), "adam": (2, 4), "sgd": (1, 0)}


@final
@dataclass(frozen=True)
class Setup:
    """What is the same for every selection of one estimate; the model is as it is frozen now."""

    model: nn.Module
    example: Any
    optimizer: str = "adamw"
    precision: str = "fp32"
    task: Task = field(default_factory=Classification)
    batch_size: int = 32
    _traced: dict[object, StepTrace] = field(default_factory=dict, repr=False, compare=False)

    def trace(self, rows: int | None = None) -> StepTrace:
        """A step of `batch_size` samples or of so many in train mode, without memory or kernels.

        One that was traced before with the same parts in training is not traced again.

        Raises:
            ConfigError: the forward needs numbers, so that it cannot run without them.
        """
        key = rows or self.batch_size, _selection(self.model)
        if key not in self._traced:
            self._traced[key] = self._trace(rows or self.batch_size)
        return self._traced[key]

    @uncollected()
    def _trace(self, rows: int) -> StepTrace:
        fake, batch, mode = skeleton(self.model, self.example, rows)
        stood = frozen_versions(fake)
        fake.train()
        if is_lean(fake):  # from its second forward on it knows what is cheap beside the rest
            with mode, torch.enable_grad(), runnable(fake), autocast(fake, self.precision):
                call_with(fake, batch)
        watch = OpRecorder(fake, batch)
        watch.run(fake, batch, mode, self.task, precision=self.precision)
        if written := written_since(stood, fake):
            raise ConfigError(writes_into(self.model, written))  # a real step would, for good
        return StepTrace(
            tuple(watch.paths),
            tuple(watch.ops),
            tuple(watch.saved),
            watch.peak,
            {n: p.grad.nbytes for n, p in fake.named_parameters() if p.grad is not None},
            watch.batch_bytes,
        )

    def measure(self, rows: int, **options: Any) -> StepCost:
        """Real steps on the example's samples over and over; `options` as for `measure_step`."""
        return measure_step(
            self.model,
            real_batch(self.example, rows),
            optimizer=self.optimizer,
            precision=self.precision,
            task=self.task,
            **options,
        )

    def memory(self, trace: StepTrace) -> Memory:
        """Of a traced step."""
        return Memory(
            weights=_once(self.model.parameters()),
            buffers=_once(self.model.buffers()),
            batch=trace.batch_bytes,
            gradients=sum(trace.gradients.values()),
            state=state_bytes(self.optimizer, trace.gradients.values()),
            saved=trace.saved_bytes,
            peak=trace.peak_bytes,
        )

    def step(self, trace: StepTrace, prices: Prices) -> Step:
        """A traced step with the seconds of each layer."""
        own = list(self.model.parameters())
        return Step(
            batch_size=self.batch_size,
            parameters=sum(p.numel() for p in own),
            trainable=sum(p.numel() for p in own if p.requires_grad),
            memory=self.memory(trace),
            layers=tuple(_layers(self.model, trace, prices)),
            optimizer_seconds=prices.of_optimizer(trace.gradients.values()),
            measured_on=prices.measured_on,
        )


def _selection(model: nn.Module) -> tuple[object, ...]:
    """What trains, and the mode that each module is in while it does."""
    with modes_kept(model):
        model.train()
        modes = tuple(module.training for module in model.modules())
    return tuple(p.requires_grad for p in model.parameters()), modes


def state_bytes(optimizer: str, gradients: Iterable[int]) -> int:
    """What the optimizer keeps for parameters with gradients of so many bytes."""
    sizes = list(gradients)
    ratio, each = STATE_BYTES[optimizer]
    return ratio * sum(sizes) + each * len(sizes)


def _layers(model: nn.Module, trace: StepTrace, prices: Prices) -> Iterable[LayerCost]:
    seconds = {"forward": [0.0] * len(trace.paths), "backward": [0.0] * len(trace.paths)}
    for op in trace.ops:
        seconds[op.during][op.layer] += prices.of(op)
    modules = dict(model.named_modules())
    for place, path in enumerate(trace.paths):
        module = modules[path]
        own = list(module.parameters(recurse=False))
        layer = LayerCost(
            path=path,
            type=type(module).__name__,
            parameters=sum(p.numel() for p in own),
            trainable=sum(p.numel() for p in own if p.requires_grad),
            saved_bytes=trace.saved[place],
            forward_seconds=seconds["forward"][place],
            backward_seconds=seconds["backward"][place],
        )
        if layer.seconds or layer.saved_bytes or layer.parameters:
            yield layer


def _once(tensors: Iterable[Any]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())
