"""Charts as data: what a template draws as inline SVG, in coordinates of a 360 by 220 picture.

That is the width of a phone, so that letters are as large there as on a desktop, where charts
stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 346, 12, 188
BESIDE = {"macro_f1": "accuracy"}  # metrics of one scale, and in whose chart they are drawn
_DRAWN_POINTS = 400  # of a line; more cannot be seen apart
_Scale = Callable[[float], float]


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """Where something stands on an axis, and what it says; `style` for an upright line there."""

    at: float
    text: str
    style: str = ""


@final
@dataclass(frozen=True, slots=True)
class Line:
    """A line through points: `path` is SVG's, `style` a class of the style sheet."""

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]


@final
@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over epochs.

    Attributes:
        words: what it shows, for those who do not see it.
        marks: upright lines: the best epoch, and where phases begin.
    """

    title: str
    words: str
    lines: tuple[Line, ...]
    across: tuple[Mark, ...]
    up: tuple[Mark, ...]
    marks: tuple[Mark, ...]


@final
@dataclass(frozen=True, slots=True)
class Bar:
    """An upright bar."""

    x: float
    y: float
    width: float
    height: float
    text: str


def line_chart(
    title: str,
    epochs: Sequence[int],
    series: Sequence[tuple[str, str, Sequence[float]]],
    *,
    marks: Sequence[tuple[float, str, str]] = (),
) -> LineChart:
    """A chart of `series` (name, style, a value for each epoch) over `epochs`.

    Args:
        marks: epoch, word and style of upright lines.
    """
    values = [v for _, _, line in series for v in line if math.isfinite(v)]
    low, high = _around(values)
    ticks = tuple(nice_ticks(low, high))
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = (epochs[0], epochs[-1]) if epochs else (0, 1)
    across = _scale(first, last, LEFT + 8, RIGHT - 8)
    up = _scale(low, high, BOTTOM, TOP)
    return LineChart(
        title,
        _words(title, epochs, series),
        tuple(_line(name, style, epochs, line, across, up) for name, style, line in series),
        tuple(Mark(across(n), str(n)) for n in _epoch_ticks(first, last)),
        tuple(Mark(up(value), number(value)) for value in ticks),
        tuple(Mark(across(at), text, style) for at, text, style in marks),
    )


def nice_ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers, multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    step = _round_step((high - low) / 4 or 1.0)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    for count in range(start, max(end, start + 1) + 1):
        yield count * step


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= least * 0.999)


def number(value: float) -> str:
    """`0.5`, `12`, `3e-04`: short, for an axis."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def upright_bars(
    shares: Sequence[float], texts: Sequence[str], *, top: float, bottom: float
) -> tuple[Bar, ...]:
    """A bar for each share of 1, side by side over the whole width."""
    each = (RIGHT - LEFT) / len(shares)
    up = _scale(0, 1, bottom, top)
    return tuple(
        Bar(
            round(LEFT + each * place + 1, 1),
            up(share),
            round(each - 2, 1),
            round(bottom - up(share), 1),
            text,
        )
        for place, (share, text) in enumerate(zip(shares, texts, strict=True))
    )


def _scale(low: float, high: float, begin: float, end: float) -> _Scale:
    """Values from `low` to `high` -> coordinates from `begin` to `end`."""
    span = high - low
    return lambda v: round(begin + ((v - low) / span if span else 0.5) * (end - begin), 1)


def _line(
    name: str, style: str, epochs: Sequence[int], values: Sequence[float], x: _Scale, y: _Scale
) -> Line:
    every = max(1, -(-len(values) // _DRAWN_POINTS))
    pairs = list(zip(epochs, values, strict=True))
    kept = [*pairs[:-1:every], *pairs[-1:]]
    points = [(x(epoch), y(value)) for epoch, value in kept if math.isfinite(value)]
    path = " ".join(f"{'L' if n else 'M'}{px:g} {py:g}" for n, (px, py) in enumerate(points))
    return Line(name, style, path, tuple(points) if len(points) <= 40 else ())


def _around(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low <= 0.4 * high else low - room), high + room


def _epoch_ticks(first: int, last: int) -> Iterator[int]:
    step = int(_round_step(max(1, -(-(last - first) // 6))))
    yield from (n for n in range(first, last + 1) if n == first or n % step == 0)


def _words(
    title: str,
    epochs: Sequence[int],
    series: Sequence[tuple[str, str, Sequence[float]]],
) -> str:
    if not epochs:
        return f"{title}: no epoch."
    known = [(name, [v for v in line if math.isfinite(v)]) for name, _, line in series]
    courses = "; ".join(
        f"{name} from {number(line[0])} to {number(line[-1])}" for name, line in known if line
    )
    return f"{title} over epochs {epochs[0]} to {epochs[-1]}: {courses}. The table below has all."
