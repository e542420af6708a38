"""What a report tells: gathered from a run's folder, before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from frostline.records import RunRecords

State = Literal["proven", "broken", "unproven"]


@final
@dataclass(frozen=True, slots=True)
class Promise:
    """Whether what was to stay frozen did.

    Attributes:
        words: in a sentence: what was proven, what broke, or why it cannot be known.
        checks: what was looked at.
        names: tensors for which it does not hold.
    """

    state: State
    words: str
    checks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """A picture beside what was made of it.

    Attributes:
        picture: a data URI; empty where there is none, and `why_not` says why.
        target, predicted: classes.
        chance: the probability of `predicted`.
        target_chance: that of `target`.
    """

    file: str
    picture: str
    why_not: str
    target: str
    predicted: str
    chance: float
    target_chance: float


@final
@dataclass(frozen=True, slots=True)
class ReportFacts:
    """All that the report of a run tells.

    Attributes:
        name: the run folder's.
        made: when this report was made, for people.
        settings: what was asked, as word and value.
        freezing: how the frozen part was chosen, in words.
        frozen: how many tensors stayed frozen in all phases, by module.
        trained: what the delta holds, by name.
        pictures_in: the folder that names of pictures are below of; empty where they are whole.
        repeat: a command line that trains this run again; empty where there is none.
        use: command lines and Python lines that use the model.
    """

    name: str
    folder: str
    made: str
    classes: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    freezing: tuple[str, ...]
    promise: Promise
    records: RunRecords
    frozen: Mapping[str, int]
    trained: Mapping[str, Tensor]
    pictures_in: str
    mistakes: tuple[Shown, ...]
    doubts: tuple[Shown, ...]
    repeat: str
    repeat_notes: tuple[str, ...]
    use_shell: str
    use_python: str
