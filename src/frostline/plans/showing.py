"""A plan as a table for people, with what each phase trains in a model where one is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from frostline.choices import AUTO_MONITOR
from frostline.plans.parts import Part, parts
from frostline.plans.phases import Phase, Until
from frostline.recipe import Recipe
from frostline.tables import Table, columns
from frostline.units import format_count

_SETTINGS = ("layer_decay", "weight_decay", "schedule", "warmup")


def plan_table(phases: Sequence[Phase]) -> Table:
    """What trains when, for how long and how; one row for each phase."""
    heads = columns("phase", "trains", "length", "lr", "settings", left=3, right=1)
    rows = tuple(
        (
            phase.label(number),
            _trains(phase),
            _length(phase),
            "default" if phase.lr is None else f"{phase.lr:g}",
            ", ".join(_settings(phase)),
        )
        for number, phase in enumerate(phases, start=1)
    )
    return Table(heads, rows)


def model_table(model: nn.Module, phases: Sequence[Phase]) -> Table:
    """As `plan_table`, with the parameters that each phase trains in `model` and their share."""
    plain = plan_table(phases)
    found = parts(model, phases, Recipe())
    rows = tuple(
        (*row[:2], format_count(part.selection.numel), _percent(share(part)), *row[2:])
        for row, part in zip(plain.rows, found, strict=True)
    )
    heads = columns("parameters", "share", left=0)
    return Table((*plain.columns[:2], *heads, *plain.columns[2:]), rows)


def share(part: Part) -> float:
    """What the phase trains of all of the model's numbers, from 0 to 1."""
    whole = part.selection.inventory.model
    return part.selection.numel / sum(parameter.numel() for parameter in whole.parameters())


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _trains(phase: Phase) -> str:
    if phase.train is not None:
        return phase.train
    return "what trains already" if phase.freeze is None else f"all but {phase.freeze}"


def _length(phase: Phase) -> str:
    given = [_counted(phase.epochs, "epoch"), _counted(phase.steps, "step")]
    cap = " or ".join(filter(None, given))
    if phase.until is None:
        return cap
    ends = f"until {_until(phase.until)}"
    return f"{ends}, at most {cap}" if cap else ends


def _counted(count: int | None, unit: str) -> str:
    return "" if count is None else f"{count} {unit}{'' if count == 1 else 's'}"


def _until(until: Until) -> str:
    monitor = "the metric" if until.monitor in (None, AUTO_MONITOR) else until.monitor
    ends = []
    if until.target is not None:
        ends.append(f"{monitor} {until.target:g}")
    if until.patience is not None:
        by = f" by {until.min_change:g}" if until.min_change else ""
        better = monitor.removeprefix("the ")
        ends.append(f"{_counted(until.patience, 'epoch')} without a better {better}{by}")
    if until.minutes is not None:
        ends.append(f"{until.minutes:g} min")
    return " or ".join(ends)


def _settings(phase: Phase) -> Iterator[str]:
    if phase.start == "best":
        yield "from the best epoch"
    elif phase.state == "fresh":
        yield "fresh optimizer state"
    for name, value in phase:
        if name in _SETTINGS and value is not None:
            yield f"{name} {value}"
    for selector, factor in phase.lr_mult.items():
        yield f"lr x {factor:g} for {selector}"
    if phase.norm == "adapt":
        yield "norms adapt"
