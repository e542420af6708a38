"""Charts as data: what a template draws as inline SVG, in coordinates of a 360 by 220 picture.

That is the width of a phone, so that letters are as large there as on a desktop, where charts
stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 346, 12, 188
BESIDE = {"macro_f1": "accuracy"}  # metrics of one scale, and in whose chart they are drawn
_DRAWN_POINTS = 400  # of a line; more cannot be seen apart


@final
@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


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
class UprightLine:
    """An upright line with a word on it: the best epoch, or where a phase begins."""

    at: float
    text: str
    style: str


@final
@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over epochs.

    Attributes:
        words: what it shows, for those who do not see it.
    """

    title: str
    words: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    marks: tuple[UprightLine, ...]


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
    across = _Scale(first, last, LEFT + 8, RIGHT - 8)
    up = _Scale(low, high, BOTTOM, TOP)
    return LineChart(
        title,
        _words(title, epochs, series),
        tuple(_line(name, style, epochs, line, across, up) for name, style, line in series),
        tuple(Tick(across(n), str(n)) for n in _epoch_ticks(first, last)),
        tuple(Tick(up(value), number(value)) for value in ticks),
        tuple(UprightLine(across(at), text, style) for at, text, style in marks),
    )


def nice_ticks(low: float, high: float, *, about: int = 4) -> Iterator[float]:
    """Round numbers, multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    rough = (high - low) / about or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    for count in range(start, max(end, start + 1) + 1):
        yield count * step


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
    up = _Scale(0, 1, bottom, top)
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


@final
@dataclass(frozen=True, slots=True)
class _Scale:
    """Values -> coordinates."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(self.begin + share * (self.end - self.begin), 1)


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
    step = max(1, -(-(last - first) // 6))
    for power in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        if power >= step:
            step = power
            break
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
