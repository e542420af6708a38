"""Steps with everything up to each stage frozen: nested choices, each of which trains less.

Real steps are made at the two ends alone; the choices between are scaled by both, each by its share
of the backward pass. Less that trains computes less, so where noise has it the other way round the
rows are pooled to their mean: of all seconds that do not rise, the nearest by squares.

Source: pool adjacent violators (Ayer and others, 1955).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from torch import nn

from frostline.estimates.pricing import Prices, between
from frostline.estimates.results import StageCost, Step
from frostline.estimates.tracing import StepTrace
from frostline.selectors import inventory
from frostline.selectors.stages import stages as stages_of


def depths(model: nn.Module) -> list[tuple[str, str]]:
    """Selectors of what is frozen up to each stage, from nothing to all but the last, and above."""
    last = len(stages_of(inventory(model))) - 1
    return [
        ("none", "all"),
        *(
            (
                "stage:0" if first == 1 else f"stage:0..{first - 1}",
                "stage:-1" if first == last else f"stage:{first}..-1",
            )
            for first in range(1, last + 1)
        ),
    ]


def evenly(found: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """At most so many of them, both ends included."""
    if len(found) <= most:
        return list(found)
    return [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]


def prices_between(traces: Sequence[StepTrace], first: Prices, last: Prices) -> list[Prices]:
    """Prices of nested choices, from those of the two ends."""
    if not (first.measured_on and last.measured_on):  # one has no real steps to be scaled by
        first = last = first if first.measured_on else last
    backward = [
        sum(first.of(op) for op in trace.ops if op.during == "backward") for trace in traces
    ]
    span = backward[0] - backward[-1]
    shares = [(own - backward[-1]) / span if span else 1.0 for own in backward]
    return [between(first, last, min(max(share, 0.0), 1.0)) for share in shares]


def rows(frozen: Sequence[str], steps: Sequence[Step]) -> list[StageCost]:
    """Steps of nested choices, each said to take no longer than the one before.

    Args:
        frozen: selectors of what is frozen, the more the later.
    """
    whole = falling([step.seconds for step in steps])
    above = falling([step.seconds - _below(step) for step in steps])
    return [
        StageCost(name, _taking(step, seconds), on_features)
        for name, step, seconds, on_features in zip(frozen, steps, whole, above, strict=True)
    ]


def falling(values: Sequence[float]) -> list[float]:
    """The nearest values that do not rise: neighbours that do are pooled to their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] < mean:
            other, many = pools.pop()
            mean, count = (mean * count + other * many) / (count + many), count + many
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _below(step: Step) -> float:
    """Forward seconds of the layers before the first that trains, as registered."""
    below = takewhile(lambda layer: not layer.trainable, step.layers)
    return sum(layer.forward_seconds for layer in below)


def _taking(step: Step, seconds: float) -> Step:
    """The step, its parts in proportion so that all of it takes so long."""
    if step.seconds in (0, seconds):
        return step
    ratio = seconds / step.seconds
    layers = (
        replace(
            layer,
            forward_seconds=layer.forward_seconds * ratio,
            backward_seconds=layer.backward_seconds * ratio,
        )
        for layer in step.layers
    )
    optimizer = step.optimizer_seconds * ratio
    return replace(step, layers=tuple(layers), optimizer_seconds=optimizer)
