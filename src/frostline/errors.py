"""Every error Frostline raises, in one tree; messages say what was asked, found, and to do.

FrostlineError                    exit status 1: the user can fix it
├── SelectorError                 a selector that cannot be read, or a term that matches nothing
├── FreezeError                   a freeze that cannot hold, or would leave nothing to train
├── ModelError                    a model that cannot be found or built, or given a head
├── WeightsError                  weights that cannot be had, read or fitted
├── DataError                     a data set that cannot be used
│   └── ImageError                one image that cannot be decoded
├── ConfigError                   options that contradict each other or their ranges
├── DeltaError                    a delta that does not belong to this model, or is none
│   └── CorruptDelta              its bytes are not those that were written; a broken promise, 3
├── CutError                      no frost line can be drawn through the model; says why
│   └── NothingFrozen             nothing below the first trainable parameter can be kept
├── StoreError                    a feature store that cannot be read or used as asked
│   └── CorruptFeatures           stored features are not what was written; broken promise, 3
├── OutputError                   a result that cannot be written where it was asked for
├── TrainingError                 a run that cannot go on
│   └── NonFiniteLoss             the loss became NaN or infinite; names the batch's samples
└── BrokenPromise                 exit status 3: what was to hold did not
    └── DriftError                a frozen tensor or mode moved; lists each with how far
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FrostlineError(Exception):
    """Root of all of Frostline's errors."""

    exit_status: ClassVar[int] = 1


class SelectorError(FrostlineError, ValueError):
    """A selector could not be read, or one of its terms matches nothing in the model."""


class FreezeError(FrostlineError, ValueError):
    """A freeze cannot hold, or would leave nothing to train."""


class ModelError(FrostlineError):
    """A model could not be found or built, or a head could not be put on it."""


class WeightsError(FrostlineError):
    """Weights could not be had, read or fitted to the model."""


class DataError(FrostlineError):
    """A data set cannot be used as asked."""


class ImageError(DataError):
    """One image could not be decoded."""


class ConfigError(FrostlineError, ValueError):
    """Options contradict each other or lie outside their range."""


class DeltaError(FrostlineError):
    """A delta cannot be read or does not belong to this model."""


class CutError(FrostlineError):
    """No frost line can be drawn through the model as asked."""


class NothingFrozen(CutError):  # noqa: N818 - named for what was found
    """No value below the first trainable parameter can be kept."""


class StoreError(FrostlineError):
    """A feature store cannot be read or used as asked."""


class OutputError(FrostlineError):
    """A result cannot be written where it was asked for."""


class TrainingError(FrostlineError):
    """A run cannot go on."""


class NonFiniteLoss(TrainingError):  # noqa: N818 - the field's word for it, and no other reading
    """The loss became NaN or infinite."""


class BrokenPromise(FrostlineError):  # noqa: N818 - named for what happened
    """Something Frostline promised did not hold."""

    exit_status: ClassVar[int] = 3


class CorruptDelta(DeltaError, BrokenPromise):  # noqa: N818 - named for what was found
    """A delta's bytes are not those that were written."""


class CorruptFeatures(StoreError, BrokenPromise):  # noqa: N818 - named for what was found
    """Stored features are not those that were written."""


class DriftError(BrokenPromise):
    """Frozen tensors or modes moved.

    Attributes:
        drifts: one entry for each tensor or module that moved, in the model's order; `str()` of
            an entry is its line of the message.
    """

    def __init__(self, message: str, drifts: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.drifts = tuple(drifts)


def shortened(text: object, *, most: int = 80) -> str:
    """`text` as a message can hold it: of a long one the beginning, and how long it is."""
    whole = str(text)
    if len(whole) <= most:
        return whole
    return f"{whole[:most]}... ({len(whole):,} characters)"


def one_line(error: BaseException, *, first: bool = False, named: bool = True) -> str:
    """`ValueError: what it says`, at most 240 characters, for a message that goes on with it.

    Args:
        first: only the first line of what it says, as a trace may follow; else all of them.
        named: with the error's class; without it the class stands where an error says nothing.
    """
    text = str(error).strip().partition("\n")[0] if first else " ".join(str(error).split())
    text, name = text.rstrip("."), type(error).__name__
    said = f"{name}: {text}" if named and text else text or name
    return said if len(said) <= 240 else f"{said[:239]}…"


def a_type(value: object) -> str:
    """What `value` is, with its article: `an int`, `a Tensor`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"  # most that begin with u are a user


def nearest(word: str, known: Sequence[str], *, count: int = 3) -> list[str]:
    """The `count` entries of `known` that are spelt most like `word`, best first."""
    from difflib import SequenceMatcher

    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(word.lower())
    scored = []
    for candidate in dict.fromkeys(known):
        matcher.set_seq1(candidate.lower())
        if matcher.quick_ratio() > 0.3:
            scored.append((-matcher.ratio(), _letter_distance(word, candidate), candidate))
    return [candidate for _, _, candidate in sorted(scored)[:count]]


def _letter_distance(word: str, candidate: str) -> int:
    """How far the letters lie apart, so that `layer4` is nearer to `layer5` than `layer1` is."""
    return sum(abs(ord(a) - ord(b)) for a, b in zip(word, candidate, strict=False))
