"""The values that become black and white in pictures of more than 8 bits: one pair for a set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Levels = tuple[float, float]
"""What becomes black, and what becomes white; values beyond either are clipped."""

FULL: Levels = (0, 65535)
"""Of integers where nothing else is said."""
UNIT: Levels = (0, 1)
"""Of floats where nothing else is said."""

Kind = Literal["", "integer", "float"]
_BITS = (8, 10, 12, 14, 16)  # of cameras and scanners
_SLACK = 0.1  # by which resampling carries floats beyond their range
_FILLED = 0.25  # of a usual range; pictures that stay below it would be nearly black in it


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a picture's values found.

    Attributes:
        kind: of values of more than 8 bits; empty for others, whose levels are their own.
        low, high: least and greatest of the finite values of such a picture.
        more_pages: whether the file has pages after the one that is read.
        is_coarse: whether `low` and `high` are known to a step of 256 only, as all of the picture
            would be if other levels than `FULL` were made of what Pillow gives.
        odd_alpha: whether its transparency looks like a band of the picture.
    """

    kind: Kind = ""
    low: float = 0.0
    high: float = 0.0
    more_pages: bool = False
    is_coarse: bool = False
    odd_alpha: bool = False

    @property
    def usual(self) -> Levels:
        """The levels of its kind where nothing is said."""
        return UNIT if self.kind == "float" else FULL

    def within(self, levels: Levels) -> bool:
        """Whether no value lies beyond the levels."""
        return not self.kind or (levels[0] <= self.low and self.high <= levels[1])


def common_levels(pictures: Iterable[Seen]) -> Levels | None:
    """The levels of a set by the extremes of its pictures; None where all have 8 bits.

    Integers from 0 take the smallest of 8, 10, 12, 14 and 16 bits that holds them. Floats take 0..1
    or one of these ranges where they fill a quarter of it and overshoot it by no more than a tenth.
    Others take their own range, from 0 if none is negative.
    """
    deep = [seen for seen in pictures if seen.kind]
    if not deep:
        return None
    low, high = min(seen.low for seen in deep), max(seen.high for seen in deep)
    are_floats = any(seen.kind == "float" for seen in deep)
    slack = _SLACK if are_floats else 0.0
    for top in [1] * are_floats + [2**bits - 1 for bits in _BITS]:
        if low >= -slack * min(top, high) and high <= (1 + slack) * top:
            if are_floats and high < _FILLED * top:
                break
            return 0, top
    return min(low, 0.0), high if high > low else low + 1


def levels_text(levels: Levels) -> str:
    """For people: `0..4095`."""
    return f"{levels[0]:g}..{levels[1]:.6g}"


def outside_text(seen: Seen) -> str:
    """Why a picture cannot be shown by the levels that its kind has where nothing is said."""
    return (
        f"its values lie in {levels_text((seen.low, seen.high))}, beyond the "
        f"{levels_text(seen.usual)} that {seen.kind}s have by default, so its black and white are "
        "not known; give levels, or save it in 8 bits"
    )


def set_text(pictures: Iterable[Seen], levels: Levels) -> str:
    """What the levels mean for the pictures of a set that have more than 8 bits."""
    deep = [seen for seen in pictures if seen.kind]
    found = levels_text((min(seen.low for seen in deep), max(seen.high for seen in deep)))
    beyond = sum(1 for seen in deep if not seen.within(levels))
    clipped = f" {_have(beyond)} values beyond that, which are clipped." if beyond else ""
    is_mixed = len({seen.kind for seen in deep}) > 1
    mixed = " Integers and floats share this; convert one kind to the other." if is_mixed else ""
    return (
        f"{_have(len(deep))} more than 8 bits, with values in {found}: {levels_text(levels)} "
        f"becomes 0..255 in every one.{clipped}{mixed}"
    )


def run_notes(pictures: Iterable[Seen], levels: Levels | None) -> list[str]:
    """What is odd about pictures for a run that was trained by `levels`."""
    deep = [seen for seen in pictures if seen.kind]
    if levels is None:
        high = max((seen.high for seen in deep), default=0)
        known = f"{levels_text(FULL)} becomes 0..255, of floats {levels_text(UNIT)}"
        note = f"more than 8 bits, with values up to {high:.6g}, and the run was trained on none: "
        return [f"{_have(len(deep))} {note}{known}"] if deep else []
    low, high = levels
    beyond = sum(1 for seen in deep if not seen.within(levels))
    dark = [seen for seen in deep if seen.high < low + (high - low) / 16]
    trained = f"{levels_text(levels)}, which the run was trained on"
    notes = [f"{_have(beyond)} values beyond {trained}; they are clipped"] if beyond else []
    if 2 * len(dark) > len(deep):
        top = max(seen.high for seen in dark)
        notes.append(
            f"{_have(len(dark))} no value above {top:.6g} of {trained}, and will be nearly black. "
            "Store them as the training pictures were"
        )
    return notes


def _have(count: int) -> str:
    return "1 picture has" if count == 1 else f"{count:,} pictures have"
