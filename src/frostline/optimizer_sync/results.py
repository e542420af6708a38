"""What a `sync` did, and what a later one can take from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

from frostline.errors import ConfigError
from frostline.tables import Displayed
from frostline.units import format_count


@final
@dataclass(frozen=True, slots=True)
class Former:
    """What a parameter was like when it left."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@final
@dataclass(frozen=True, slots=True, eq=False)
class Synced(Displayed):
    """What a `sync` did; hand it to a later one as `kept` to give states back.

    Attributes:
        joined: names of the parameters that joined, in the model's order.
        left: names of those that left.
        states: name -> the optimizer state that left with it; none where it had none yet.
        groups: name -> index of the group that it left.
        groups_added: how many groups were appended to the optimizer.
        dropped: names of those whose state was of a shape that the parameter no longer has, as
            after a resize of its data; who of them trains begins without.
        held: names of modules that are held although something else than `fl.thaw` unfroze them:
            what is in them trains with dropout and running statistics off.
        formers: name -> what those in `states` were like when they left.
    """

    joined: tuple[str, ...]
    left: tuple[str, ...]
    states: Mapping[str, Mapping[str, Any]] = field(repr=False)
    groups: Mapping[str, int] = field(repr=False)
    groups_added: int = 0
    dropped: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    formers: Mapping[str, Former] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        text = f"{_counted(self.joined)} joined, {_counted(self.left)} left"
        if self.groups_added:
            text += f"; {self.groups_added} group{'s' * (self.groups_added > 1)} added"
        if self.dropped:
            text += f"; {_counted(self.dropped)} begin again: their state was of another shape"
        if self.held:
            text += f"; held in eval though trainable: {_first(self.held)} (fl.thaw lets them go)"
        return text


Kept = Synced | Mapping[str, Mapping[str, Any]] | None


def as_synced(kept: Kept) -> Synced:
    """States by name as what a `sync` returns; raises ConfigError for anything else."""
    if isinstance(kept, Synced):
        return kept
    states = kept or {}
    if isinstance(states, Mapping) and all(isinstance(s, Mapping) for s in states.values()):
        return Synced((), (), states, {})
    raise ConfigError(
        f"kept is what fl.sync returned, or a mapping from parameter names to states; got "
        f"{type(kept).__name__}. Merge several as {{**first.states, **second.states}}."
    )


def _counted(names: tuple[str, ...]) -> str:
    if not names:
        return "nothing"
    return f"{format_count(len(names))} parameter{'s' * (len(names) > 1)} ({_first(names)})"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
