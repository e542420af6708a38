"""The freeze of one phase of a plan, put on a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from frostline.freezing import Frozen, frozen_part, train_only
from frostline.plans import Phase
from frostline.plans.parts import naming, place_of
from frostline.selectors import parse


def freeze_for(model: nn.Module, phases: Sequence[Phase], number: int) -> Frozen:
    """Freeze what that phase freezes, counted from 0, and thaw the rest; a handle on the former.

    One that names nothing goes on with what the phase before it trained, the first with the model
    as it is.

    Raises:
        SelectorError, FreezeError: the phase does not fit the model.
    """
    for index in range(number, -1, -1):
        phase = phases[index]
        with naming(place_of(index + 1, phase)):
            if phase.train is not None:
                return train_only(model, phase.train, norm=phase.norm)
            if phase.freeze is not None:
                return train_only(model, ~parse(phase.freeze), norm=phase.norm)
    return frozen_part(model)
