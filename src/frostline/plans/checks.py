"""Whether a plan fits a model: errors for what cannot be, warnings for what is hardly meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from torch import nn

from frostline.choices import AUTO_MONITOR
from frostline.groups import Rate
from frostline.plans.parts import Part, parts
from frostline.plans.phases import Phase
from frostline.recipe import Recipe
from frostline.selectors import select

_MOST_JUMP = 100.0  # between two phases in which a parameter trains
_MOST_SPAN = 1000.0  # between two parameters of one phase
_MOST_ADAM_LR = 0.1
_LENGTH = ("name", "epochs", "steps", "until")


def check(model: nn.Module, phases: Sequence[Phase], *, recipe: Recipe) -> tuple[str, ...]:
    """Sentences on what the plan hardly means in `model`, phase by phase; see `Plan.check`."""
    if recipe.monitor == AUTO_MONITOR:  # of classification, which is the task without another
        recipe = recipe.model_copy(update={"monitor": "accuracy"})
    found = parts(model, phases, recipe)
    return (
        *_met_before(found),
        *_repeated(found),
        *_without_effect(model, found),
        *_jumps(found),
        *_spans(found),
        *(() if recipe.optimizer == "sgd" else _steep(found, recipe)),
    )


def _met_before(found: Sequence[Part]) -> Iterator[str]:
    """Targets that an earlier phase has reached when it ends by its own."""
    for earlier, later in combinations(found, 2):
        first, second = earlier.phase.until, later.phase.until
        if first is None or second is None or first.monitor != second.monitor:
            continue
        # The direction is known of these alone.
        better = {"accuracy": 1, "macro_f1": 1, "loss": -1}.get(first.monitor or "", 0)
        if first.target is None or second.target is None or not better:
            continue
        if better * (first.target - second.target) >= 0:
            yield (
                f"{later.place} would end after its first epoch: its target, {second.monitor} "
                f"{second.target:g}, is met where {earlier.place} meets its own, "
                f"{first.target:g}. Give it a harder target or leave it out."
            )


def _repeated(found: Sequence[Part]) -> Iterator[str]:
    for before, after in pairwise(found):
        if before.selection.names != after.selection.names:
            continue
        goes_on = after.phase.start == "last" and after.phase.state == "keep"
        if goes_on and _manner(before) == _manner(after):
            yield (
                f"{after.place} trains the same as {before.place} with the same settings. Make "
                "them one phase, unless its learning rate is to begin anew."
            )


def _manner(part: Part) -> tuple[object, ...]:
    """The peak rates, and the settings but for length and what may be worded in two ways."""
    left_out = {*_LENGTH, "train", "freeze", "lr", "lr_mult", "layer_decay", "start", "state"}
    peaks = {key: rate.lr for key, rate in part.rates.items()}
    return peaks, {name: value for name, value in part.phase if name not in left_out}


def _without_effect(model: nn.Module, found: Sequence[Part]) -> Iterator[str]:
    for part in found:
        for key in part.phase.lr_mult:
            if part.rates.keys().isdisjoint(map(id, select(model, key).parameters)):
                yield (
                    f"{part.place}: lr_mult for '{key}' changes nothing, as all that it matches "
                    "is frozen. Leave it out, or train that part too."
                )


def _jumps(found: Sequence[Part]) -> Iterator[str]:
    """For each phase, the parameter whose rate is furthest from the one it last trained at."""
    last: dict[int, tuple[float, str]] = {}
    for part in found:
        known = [(rate, *last[key]) for key, rate in part.rates.items() if key in last]
        worst = max(known, key=lambda k: _ratio(k[0].lr, k[1]), default=None)
        if worst is not None and _ratio(worst[0].lr, worst[1]) > _MOST_JUMP:
            rate, before, place = worst
            yield (
                f"the learning rate of {rate.name} goes from {before:.2g} in {place} to "
                f"{rate.lr:.2g} in {part.place}, by a factor of {_ratio(rate.lr, before):,.0f}. "
                "Check lr, layer_decay and lr_mult of both."
            )
        last.update({key: (rate.lr, part.place) for key, rate in part.rates.items()})


def _spans(found: Sequence[Part]) -> Iterator[str]:
    for part in found:
        low, high = _extremes(part)
        if _ratio(low.lr, high.lr) > _MOST_SPAN:
            yield (
                f"{part.place}: learning rates span a factor of {_ratio(low.lr, high.lr):,.0f}, "
                f"from {low.lr:.2g} for {low.name} to {high.lr:.2g} for {high.name}. "
                "Bring layer_decay nearer to 1, or freeze what would hardly move."
            )


def _steep(found: Sequence[Part], recipe: Recipe) -> Iterator[str]:
    for part in found:
        _, high = _extremes(part)
        if high.lr > _MOST_ADAM_LR:
            yield (
                f"{part.place}: a learning rate of {high.lr:.2g} for {high.name} is far "
                f"above what {recipe.optimizer} bears; 1e-3 is a usual one."
            )


def _extremes(part: Part) -> tuple[Rate, Rate]:
    rates = part.rates.values()
    return min(rates, key=lambda rate: rate.lr), max(rates, key=lambda rate: rate.lr)


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
