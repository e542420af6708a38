"""What an estimate gives: memory and time of a step, of phases and stages, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from heapq import nlargest
from typing import Any, final

import torch

from frostline.estimates.measuring import StepCost
from frostline.tables import Displayed, Table, columns, hanging
from frostline.units import format_bytes, format_count, format_seconds
from frostline.wording import either, option

# Blocks that the allocator keeps, and what kernels pack into: three steps of seven networks on
# a CPU were resident with 24 to 47 % more than their tensors, the less the larger the batch; with
# PyTorch 2.9 it was 29 to 78 %.
_MARGIN = 0.3 if torch.__version__ >= "2.15" else 0.6
_MARGIN_BYTES = 96 << 20
_LAYERS_SHOWN = 12
_IDLE_SHARE = 0.75  # of a core that steps have on an idle machine, the least
_CHECKED = ("seconds", "saved_bytes", "gradient_bytes", "state_bytes")


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
            **asdict(self),
            "memory": self.memory.as_dict(),
            "seconds": self.seconds,
            "forward_seconds": self.forward_seconds,
            "backward_seconds": self.backward_seconds,
        }


@final
@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What one phase takes in time, with and without stored features, and on disk.

    Attributes:
        name: of the phase; empty where there is no plan.
        epochs: as planned, or the cap of a phase that may end before.
        plain_seconds: of the whole phase; 0 where it is not known how many samples there are, and
            then there is no `why` either.
        why: where the frost line runs; or why there is none.
        disk_bytes: of the features; 0 where none can be stored.
        prefix_seconds: of computing them once.
        features_seconds: of the whole phase on them, computing included; equal to
            `plain_seconds` where none can be stored.
    """

    name: str
    epochs: int
    step: Step
    plain_seconds: float = 0.0
    why: str = ""
    disk_bytes: int = 0
    prefix_seconds: float = 0.0
    features_seconds: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class StageCost:
    """A step where everything up to some stage is frozen.

    Attributes:
        features_step_seconds: without the forward of the layers before the first that trains, as
            registered.
    """

    frozen: str
    step: Step
    features_step_seconds: float


@final
@dataclass(frozen=True, slots=True)
class BudgetFit:
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
class Estimate(Displayed):
    """What training would cost; printing it shows tables.

    Attributes:
        phases: one where there is no plan. `step` is that of the first.
        samples: that an epoch trains on, and validates on; 0 where not known.
        stages: everything up to each stage frozen, from nothing to all but the head.
        measured_seconds: that calibrating took on this machine.
        stages_left: how many between have no row.
        core_share: of a processor core that this thread had meanwhile, from 0 to 1: on a machine
            that is busy otherwise all seconds are too long.

    Example:
        >>> cost = fl.estimate(model, images, batch_size=64, calibration_seconds=0)
        >>> cost.model, cost.optimizer, cost.step.memory.batch
        ('Sequential', 'adamw', 49152)
    """

    model: str
    optimizer: str
    precision: str
    lean: bool
    phases: tuple[PhaseCost, ...]
    samples: tuple[int, int] = (0, 0)
    stages: tuple[StageCost, ...] = ()
    budget: BudgetFit | None = None
    check: StepCost | None = None
    measured_seconds: float = 0.0
    core_share: float = 1.0
    stages_left: int = 0

    @property
    def step(self) -> Step:
        return self.phases[0].step

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "precision": self.precision,
            "lean": self.lean,
            "samples": {"train": self.samples[0], "validation": self.samples[1]},
            "phases": [{**asdict(phase), "step": phase.step.as_dict()} for phase in self.phases],
            "stages": [
                {
                    "frozen": stage.frozen,
                    "features_step_seconds": stage.features_step_seconds,
                    **{k: v for k, v in stage.step.as_dict().items() if k != "layers"},
                }
                for stage in self.stages
            ],
            "budget": None if self.budget is None else asdict(self.budget),
            "check": None
            if self.check is None
            else {name: getattr(self.check, name) for name in _CHECKED},
            "calibration_seconds": self.measured_seconds,
            "core_share": self.core_share,
        }

    def _parts(self) -> Iterator[Table | str]:
        return self.tables()

    def __str__(self) -> str:
        return "\n\n".join(str(part) for part in self.tables())

    def tables(self) -> Iterator[Table | str]:
        """Tables and lines, in the order in which they are read."""
        if busy := busy_note(self.core_share):
            yield hanging(busy, indent=0)
        yield _memory_table(self)
        yield _layer_table(self.step)
        if self.stages:
            yield _stage_table(self.stages, self.stages_left)
        yield _phase_table(self)
        if self.check is not None:
            yield _check_table(self.step, self.check)
        if self.budget is not None:
            yield _budget_lines(self.budget)


def busy_note(core_share: float) -> str:
    """What to say of seconds that were timed with so much of a core; nothing on an idle machine."""
    if core_share > _IDLE_SHARE:
        return ""
    return (
        f"This machine was too busy to time on: of a processor core {core_share:.0%} were free, so "
        f"seconds are about {1 / max(core_share, 0.01):.2g} times too long. Run it again when the "
        "machine is idle; memory and disk are right."
    )


def _memory_table(found: Estimate) -> Table:
    step, memory = found.step, found.step.memory
    rows = (
        ("weights and buffers", format_bytes(memory.weights + memory.buffers)),
        ("batch", format_bytes(memory.batch)),
        ("gradients", format_bytes(memory.gradients)),
        (f"{found.optimizer}'s state", format_bytes(memory.state)),
        ("activations saved for backward", format_bytes(memory.saved)),
        ("gradients, saved and passing at once, at most", format_bytes(memory.peak)),
        ("margin for allocator and kernels", format_bytes(memory.margin)),
        ("in all, at the worst moment", format_bytes(memory.total)),
    )
    title = (
        f"A step of {found.model}: batch {step.batch_size}, {found.optimizer}, {found.precision}"
        f"{', lean' if found.lean else ''}"
    )
    note = (
        f"{format_count(step.trainable)} of {format_count(step.parameters)} parameters train. "
        f"A step takes about {format_seconds(step.seconds)}: forward "
        f"{format_seconds(step.forward_seconds)}, backward "
        f"{format_seconds(step.backward_seconds)}, optimizer "
        f"{format_seconds(step.optimizer_seconds)}"
        f"{f'; scaled by real steps of {step.measured_on}' if step.measured_on else ''}."
    )
    notes = tuple(hanging(note, indent=0).splitlines())
    return Table(columns("memory", ""), rows, title, notes)


def _layer_table(step: Step) -> Table:
    dear = {
        *nlargest(_LAYERS_SHOWN, step.layers, key=lambda layer: layer.seconds),
        *nlargest(_LAYERS_SHOWN // 2, step.layers, key=lambda layer: layer.saved_bytes),
    }
    shown = [layer for layer in step.layers if layer in dear]
    rows = tuple(
        (
            layer.path or "(model)",
            layer.type,
            _part(layer),
            format_bytes(layer.saved_bytes),
            format_seconds(layer.forward_seconds),
            format_seconds(layer.backward_seconds),
        )
        for layer in shown
    )
    heads = columns("layer", "type", "trains", "saved", "forward", "backward", left=3)
    left = len(step.layers) - len(shown)
    every = either("step.layers", "--json")
    notes = (f"and {left} layers that take and keep less; all of them with {every}",)
    return Table(heads, rows, "Layers that take or keep the most", notes if left else ())


def _stage_table(stages: tuple[StageCost, ...], left: int) -> Table:
    rows = tuple(
        (
            stage.frozen,
            format_count(stage.step.trainable),
            format_bytes(stage.step.memory.total),
            format_seconds(stage.step.seconds),
            format_seconds(stage.features_step_seconds),
        )
        for stage in stages
    )
    heads = columns("frozen", "trainable", "memory", "step", "on features")
    notes = (f"and {left} stages between; ask for one with {option('freeze')}",)
    return Table(heads, rows, "What freezing saves", notes if left else ())


def _phase_table(found: Estimate) -> Table | str:
    train, validation = found.samples
    if not train:
        samples = either("`samples`", "--samples or --data")
        return hanging(
            f"Give the number of samples ({samples}) for the frost line, the time of epochs and "
            "the disk that features need.",
            indent=0,
        )
    phases = found.phases
    rows = [_phase_row(phase.name or "all", (phase,)) for phase in phases]
    rows += [_phase_row("in all", phases)] if len(phases) > 1 else []
    heads = columns("phase", "epochs", "plain loop", "on features", "of it once", "disk")
    title = f"{format_count(train)} samples to train on, {format_count(validation)} to validate"
    lines = [f"Frost line: {phase.why}." for phase in phases]
    lines.append(
        "Float32 as computed, no decoding of files; each epoch validates; features are "
        "computed once for each sample."
    )
    notes = tuple(
        part for line in dict.fromkeys(lines) for part in hanging(line, indent=2).splitlines()
    )
    return Table(heads, tuple(rows), title, notes)


def _phase_row(name: str, phases: Sequence[PhaseCost]) -> tuple[str, ...]:
    return (
        name,
        str(sum(phase.epochs for phase in phases)),
        format_seconds(sum(phase.plain_seconds for phase in phases)),
        format_seconds(sum(phase.features_seconds for phase in phases)),
        format_seconds(sum(phase.prefix_seconds for phase in phases)),
        format_bytes(sum(phase.disk_bytes for phase in phases)),
    )


def _check_table(step: Step, check: StepCost) -> Table:
    memory = step.memory
    rows = (
        _compared("seconds of a step", step.seconds, check.seconds, format_seconds),
        _compared("saved bytes", memory.saved, check.saved_bytes, format_count),
        _compared("gradient bytes", memory.gradients, check.gradient_bytes, format_count),
        _compared("state bytes", memory.state, check.state_bytes, format_count),
    )
    heads = columns("a real step", "estimated", "measured", "ratio")
    return Table(heads, rows, "Checked on this machine")


def _budget_lines(budget: BudgetFit) -> str:
    within, largest = format_bytes(budget.nbytes), option("batch_size", budget.batch_size)
    lines = [
        f"Within {within}: {largest} is the largest with what trains "
        f"now ({format_bytes(budget.total)})."
        if budget.batch_size
        else f"Within {within} not even one sample fits with what trains now; freeze more."
    ]
    lines.append(
        f"At batch {budget.thaw_batch_size} the deepest that may train is "
        f"{option('train', budget.thaw)} ({format_bytes(budget.thaw_total)})."
        if budget.thaw
        else f"At batch {budget.thaw_batch_size} not even the last stage may train."
    )
    return "\n".join(hanging(line, indent=2) for line in lines)


def _part(layer: LayerCost) -> str:
    if not layer.parameters:
        return "-"
    return {0: "no", layer.parameters: "yes"}.get(layer.trainable, "in part")


def _compared(name: str, ours: float, real: float, put: Callable[[Any], str]) -> tuple[str, ...]:
    ratio = f"{ours / real:.2f}" if real else ("1.00" if not ours else "-")
    return name, put(ours), put(real), ratio
