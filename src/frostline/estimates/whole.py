"""A whole estimate: plain data, and the tables that people read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import final

from frostline.estimates.results import Budget, Check, Course, LayerCost, Stage, Step
from frostline.tables import Column, Table, columns, hanging
from frostline.units import format_bytes, format_count, format_seconds

_LAYERS_SHOWN = 12


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """What training would cost; printing it shows tables.

    Attributes:
        courses: a phase each; one where there is no plan. `step` is that of the first.
        samples: that an epoch trains on, and validates on; 0 where not known.
        stages: everything up to each stage frozen, from nothing to all but the head.
        measured_seconds: that calibrating took on this machine.
    """

    model: str
    optimizer: str
    precision: str
    lean: bool
    courses: tuple[Course, ...]
    samples: tuple[int, int] = (0, 0)
    stages: tuple[Stage, ...] = ()
    budget: Budget | None = None
    check: Check | None = None
    measured_seconds: float = 0.0

    @property
    def step(self) -> Step:
        return self.courses[0].step

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "precision": self.precision,
            "lean": self.lean,
            "samples": {"train": self.samples[0], "validation": self.samples[1]},
            "phases": [
                {**asdict(course), "step": course.step.as_dict()} for course in self.courses
            ],
            "stages": [
                {
                    "frozen": stage.frozen,
                    "features_step_seconds": stage.features_step_seconds,
                    **{k: v for k, v in stage.step.as_dict().items() if k != "layers"},
                }
                for stage in self.stages
            ],
            "budget": None if self.budget is None else asdict(self.budget),
            "check": None if self.check is None else asdict(self.check),
            "calibration_seconds": self.measured_seconds,
        }

    def __str__(self) -> str:
        return "\n\n".join(str(part) for part in self.tables())

    def tables(self) -> Iterator[Table | str]:
        """Tables and lines, in the order in which they are read."""
        yield _memory_table(self)
        yield _layer_table(self.step)
        if self.stages:
            yield _stage_table(self.stages)
        yield _course_table(self)
        if self.check is not None:
            yield _check_table(self.step, self.check)
        if self.budget is not None:
            yield _budget_lines(self.budget)


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
    return Table((Column("memory"), Column("", "right")), rows, title, notes)


def _layer_table(step: Step) -> Table:
    order = sorted(step.layers, key=lambda layer: -layer.seconds)
    dear = order[:_LAYERS_SHOWN]
    dear += [x for x in _most_saved(step.layers) if x not in dear]
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
    notes = (f"and {left} layers that take and keep less; all of them with --json",)
    return Table(heads, rows, "Layers that take or keep the most", notes if left else ())


def _stage_table(stages: tuple[Stage, ...]) -> Table:
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
    return Table(heads, rows, "What freezing saves")


def _course_table(found: Estimate) -> Table | str:
    train, validation = found.samples
    if not train:
        return hanging(
            f"Frost line: {found.courses[0].why}. Give the number of samples for the time of "
            "epochs and the disk that features need (--samples or --data).",
            indent=0,
        )
    rows: tuple[tuple[str, ...], ...] = tuple(
        (
            course.name or "all",
            str(course.epochs),
            format_seconds(course.plain_seconds),
            format_seconds(course.features_seconds),
            format_seconds(course.prefix_seconds),
            format_bytes(course.disk_bytes),
        )
        for course in found.courses
    )
    if len(rows) > 1:
        totals = (
            sum(course.plain_seconds for course in found.courses),
            sum(course.features_seconds for course in found.courses),
            sum(course.prefix_seconds for course in found.courses),
        )
        disk = sum(course.disk_bytes for course in found.courses)
        times = map(format_seconds, totals)
        epochs = str(sum(course.epochs for course in found.courses))
        rows = (*rows, ("in all", epochs, *times, format_bytes(disk)))
    heads = columns("phase", "epochs", "plain loop", "on features", "of it once", "disk")
    title = f"{format_count(train)} samples to train on, {format_count(validation)} to validate"
    lines = [f"Frost line: {course.why}." for course in found.courses]
    lines.append(
        "Float32 as computed, no decoding of files; each epoch validates; features are "
        "computed once for each sample."
    )
    notes = tuple(
        part for line in dict.fromkeys(lines) for part in hanging(line, indent=2).splitlines()
    )
    return Table(heads, rows, title, notes)


def _check_table(step: Step, check: Check) -> Table:
    rows = (
        (
            "seconds of a step",
            format_seconds(step.seconds),
            format_seconds(check.seconds),
            _ratio(step.seconds, check.seconds),
        ),
        *(
            (name, format_count(ours), format_count(real), _ratio(ours, real))
            for name, ours, real in (
                ("saved bytes", step.memory.saved, check.saved_bytes),
                ("gradient bytes", step.memory.gradients, check.gradient_bytes),
                ("state bytes", step.memory.state, check.state_bytes),
            )
        ),
    )
    heads = columns("a real step", "estimated", "measured", "ratio")
    return Table(heads, rows, "Checked on this machine")


def _budget_lines(budget: Budget) -> str:
    within = format_bytes(budget.nbytes)
    lines = [
        f"Within {within}: --batch-size {budget.batch_size} is the largest with what trains "
        f"now ({format_bytes(budget.total)})."
        if budget.batch_size
        else f"Within {within} not even one sample fits with what trains now; freeze more."
    ]
    lines.append(
        f"At batch {budget.thaw_batch_size} the deepest that may train is --train "
        f"'{budget.thaw}' ({format_bytes(budget.thaw_total)})."
        if budget.thaw
        else f"At batch {budget.thaw_batch_size} not even the last stage may train."
    )
    return "\n".join(hanging(line, indent=2) for line in lines)


def _most_saved(layers: tuple[LayerCost, ...]) -> list[LayerCost]:
    return sorted(layers, key=lambda layer: -layer.saved_bytes)[: _LAYERS_SHOWN // 2]


def _part(layer: LayerCost) -> str:
    if not layer.parameters:
        return "-"
    return {0: "no", layer.parameters: "yes"}.get(layer.trainable, "in part")


def _ratio(ours: float, real: float) -> str:
    return f"{ours / real:.2f}" if real else ("1.00" if not ours else "-")
