"""What each phase of a plan trains in one model, and at which learning rates; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import nn

from frostline.errors import ConfigError, SelectorError
from frostline.freezing.refusals import why_inert
from frostline.groups import Rate, default_lr, rates_by_rule
from frostline.plans.phases import Phase
from frostline.recipe import Recipe
from frostline.selectors import Selection, inventory, nothing, parse, select


@final
@dataclass(frozen=True, slots=True)
class Part:
    """What one phase trains in one model.

    Attributes:
        place: how messages call the phase: `phase 2 (tune)`.
        phase: with what it leaves open filled in from the recipe.
        selection: what trains.
        rates: `id()` of each trained parameter -> its rate, with the peak learning rate.
    """

    place: str
    phase: Phase
    selection: Selection
    rates: dict[int, Rate]


def parts(model: nn.Module, phases: Sequence[Phase], recipe: Recipe) -> tuple[Part, ...]:
    """What each phase trains in `model`, which stays as it is.

    A phase that neither trains nor freezes goes on with what trained before it; the first takes
    the model as it is.

    Raises:
        SelectorError: a selector matches nothing; the phase is named.
        ConfigError: a phase would train nothing, or does not go with the recipe.
    """
    before = _as_it_is(model)
    found = []
    for number, phase in enumerate(phases, start=1):
        place = place_of(number, phase)
        with naming(place):
            filled = phase.completed(recipe)
            selection = before = _trained(model, phase, before)
            rates = _rates(model, filled, selection, recipe)
        found.append(Part(place, filled, selection, rates))
    return tuple(found)


def place_of(number: int, phase: Phase) -> str:
    """`phase 2 (tune)`, or `phase 2` without a name; counted from 1."""
    return f"phase {number} ({phase.name})" if phase.name else f"phase {number}"


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the phase before the message of what is wrong in it."""
    try:
        yield
    except (SelectorError, ConfigError) as error:
        raise type(error)(f"{place}: {error}") from error


def _as_it_is(model: nn.Module) -> Selection:
    stock = inventory(model)
    wanting = {i for i, entry in enumerate(stock.entries) if entry.tensor.requires_grad}
    return Selection(nothing, stock, frozenset(wanting))


def _trained(model: nn.Module, phase: Phase, before: Selection) -> Selection:
    if phase.train is not None:
        found, asked = select(model, phase.train), f"train={phase.train!r}"
    elif phase.freeze is not None:
        found, asked = select(model, ~parse(phase.freeze)), f"freeze={phase.freeze!r}"
    else:
        found, asked = before, "going on with what trains already"
    places = ((p.name, p.owner) for entry in found.entries for p in entry.occurrences)
    if why := why_inert(places, asked=str(found.selector)):
        raise ConfigError(why)
    if any(p.is_floating_point() or p.is_complex() for p in found.parameters):
        return found
    raise ConfigError(
        f"{asked} leaves nothing to train in {found.inventory.title}. Train something, as "
        "train='stage:-1' for the head."
    )


def _rates(model: nn.Module, phase: Phase, selection: Selection, recipe: Recipe) -> dict[int, Rate]:
    """The peaks that `groups.param_groups` gives once the phase's freeze is in place."""
    peak = phase.lr or default_lr(model, optimizer=recipe.optimizer, trained=selection)
    with naming("lr_mult"):
        rates = rates_by_rule(
            model,
            lr=peak,
            weight_decay=0.0,
            layer_decay=phase.layer_decay or 1.0,
            lr_mult=phase.lr_mult,
            no_decay=nothing,
            trained=selection,
        )
    return {id(rate.parameter): rate for rate in rates}
