"""What each phase of a plan trains in one model, and at which learning rates; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import nn

from frostline.errors import ConfigError, SelectorError
from frostline.freezing.refusals import why_inert
from frostline.plans.phases import Phase
from frostline.recipe import Recipe
from frostline.selectors import Selection, inventory, nothing, parse, select, select_whole, stages

# As groups.default_lr has them, which stands on a higher floor; a test holds the two together.
_HEAD_LR = 3e-3
_OTHER_LR = 3e-4
_SGD_FACTOR = 10
_DO = "Train something, as train='stage:-1' for the head."


@final
@dataclass(frozen=True, slots=True)
class Rate:
    """The peak learning rate of one parameter in one phase."""

    parameter: str
    lr: float


@final
@dataclass(frozen=True, slots=True)
class Part:
    """What one phase trains in one model.

    Attributes:
        place: how messages call the phase: `phase 2 (tune)`.
        phase: with what it leaves open filled in from the recipe.
        selection: what trains.
        rates: `id()` of each trained parameter -> its peak learning rate.
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
    except SelectorError as error:
        raise SelectorError(f"{place}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _as_it_is(model: nn.Module) -> Selection:
    stock = inventory(model)
    wanting = {i for i, entry in enumerate(stock.entries) if entry.tensor.requires_grad}
    return Selection(nothing, stock, frozenset(wanting))


def _trained(model: nn.Module, phase: Phase, before: Selection) -> Selection:
    if phase.train is not None:
        found = select(model, phase.train)
    elif phase.freeze is not None:
        found = select(model, ~parse(phase.freeze))
    else:
        found = before
    places = ((p.name, p.owner) for entry in found.entries for p in entry.occurrences)
    if why := why_inert(places, asked=str(found.selector)):
        raise ConfigError(why)
    if any(p.is_floating_point() or p.is_complex() for p in found.parameters):
        return found
    raise ConfigError(f"{_asked(phase)} leaves nothing to train in {found.inventory.title}. {_DO}")


def _asked(phase: Phase) -> str:
    if phase.train is not None:
        return f"train={phase.train!r}"
    if phase.freeze is not None:
        return f"freeze={phase.freeze!r}"
    return "going on with what trains already"


def _rates(model: nn.Module, phase: Phase, selection: Selection, recipe: Recipe) -> dict[int, Rate]:
    """As `groups.param_groups` gives them once the phase's freeze is in place."""
    stock = inventory(model)
    depth = {id(stock.entries[i].tensor): n for n, own in enumerate(stages(stock)) for i in own}
    last = max(depth.values())
    with naming("lr_mult"):
        factors = [
            (_ids(select_whole(model, key)), factor) for key, factor in phase.lr_mult.items()
        ]
    trained = [entry for entry in selection.entries if entry.is_parameter]
    head_alone = all(depth[id(entry.tensor)] == last for entry in trained)
    peak = phase.lr or default_lr(head_alone=head_alone, optimizer=recipe.optimizer)
    found = {}
    for entry in trained:
        key = id(entry.tensor)
        rate = peak * (phase.layer_decay or 1.0) ** (last - depth[key])
        for picked, factor in factors:
            rate *= factor if key in picked else 1.0
        found[key] = Rate(entry.name, rate)
    return found


def default_lr(*, head_alone: bool, optimizer: str) -> float:
    """The learning rate of a phase that names none, as `groups.default_lr` gives it."""
    return (_HEAD_LR if head_alone else _OTHER_LR) * (_SGD_FACTOR if optimizer == "sgd" else 1)


def _ids(selection: Selection) -> frozenset[int]:
    return frozenset(map(id, selection.parameters))
