"""The parts of an estimate: memory and time of a step, of a phase, of a stage, of a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import torch

# Blocks that the allocator keeps, and what kernels pack into: three steps of seven networks on
# a CPU were resident with 24 to 47 % more than their tensors, the less the larger the batch; with
# PyTorch 2.9 it was 29 to 78 %.
_MARGIN = 0.3 if torch.__version__ >= "2.15" else 0.6
_MARGIN_BYTES = 96 << 20


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one training step on the device.

    Attributes:
        weights, buffers, batch: there all the time.
        gradients: of all parameters that get one.
        state: what the optimizer keeps.
        saved: activations kept for the backward pass, each storage once.
        peak: the most of gradients, saved activations and passing values that is there at once.
    """

    weights: int
    buffers: int
    batch: int
    gradients: int
    state: int
    saved: int
    peak: int

    @property
    def margin(self) -> int:
        """For what the allocator keeps back and kernels pack their arguments into."""
        return int(self._known * _MARGIN) + _MARGIN_BYTES

    @property
    def total(self) -> int:
        """All of it at the worst moment, with the margin."""
        return self._known + self.margin

    @property
    def _known(self) -> int:
        return self.weights + self.buffers + self.batch + self.state + self.peak

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return {**asdict(self), "margin": self.margin, "total": self.total}


@final
@dataclass(frozen=True, slots=True)
class LayerCost:
    """One module's own part of a step, without the modules inside it."""

    path: str
    type: str
    parameters: int
    trainable: int
    saved_bytes: int
    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One training step of one selection.

    Attributes:
        layers: in the model's order; only modules that do or keep something.
        optimizer_seconds: of the optimizer's step.
        measured_on: samples of the real steps by which the seconds were scaled; 0 for none.
    """

    batch_size: int
    parameters: int
    trainable: int
    memory: Memory
    layers: tuple[LayerCost, ...]
    optimizer_seconds: float
    measured_on: int = 0

    @property
    def forward_seconds(self) -> float:
        return sum(layer.forward_seconds for layer in self.layers)

    @property
    def backward_seconds(self) -> float:
        return sum(layer.backward_seconds for layer in self.layers)

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds + self.optimizer_seconds

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "batch_size": self.batch_size,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "memory": self.memory.as_dict(),
            "seconds": self.seconds,
            "forward_seconds": self.forward_seconds,
            "backward_seconds": self.backward_seconds,
            "optimizer_seconds": self.optimizer_seconds,
            "measured_on": self.measured_on,
            "layers": [asdict(layer) for layer in self.layers],
        }


@final
@dataclass(frozen=True, slots=True)
class Course:
    """What one phase takes in time, with and without stored features, and on disk.

    Attributes:
        name: of the phase; empty where there is no plan.
        epochs: as planned, or the cap of a phase that may end before.
        why: where the frost line runs; or why there is none.
        disk_bytes: of the features; 0 where none can be stored.
        prefix_seconds: of computing them once.
        features_seconds: of the whole phase on them, computing included; equal to
            `plain_seconds` where none can be stored.
    """

    name: str
    epochs: int
    step: Step
    plain_seconds: float
    why: str
    disk_bytes: int = 0
    prefix_seconds: float = 0.0
    features_seconds: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """A step where everything up to some stage is frozen."""

    frozen: str
    step: Step
    features_step_seconds: float


@final
@dataclass(frozen=True, slots=True)
class Budget:
    """What fits into so many bytes.

    Attributes:
        batch_size: the largest that fits with what trains now; 0 where none does.
        thaw: selector of the deepest part, from the top, that may train at the wanted batch size;
            None where not even the last stage fits.
    """

    nbytes: int
    batch_size: int
    total: int
    thaw: str | None
    thaw_batch_size: int
    thaw_total: int


@final
@dataclass(frozen=True, slots=True)
class Check:
    """A real step beside the estimate."""

    seconds: float
    saved_bytes: int
    gradient_bytes: int
    state_bytes: int
