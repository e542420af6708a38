"""Has anything become slower? A few ratios in under 5 minutes, against those that were committed.

    python benchmarks/guard.py [--repeats 3] [--update]

Each ratio is of two sides that are measured side by side, once a repeat; its noise is how far its
repeats lie apart. One has fallen where its median is worse than the committed one by more than the
noise of both together, and by more than a few percent. Exit status 1 where one has. `--update`
writes what was measured to `results/guard.json`; the committed figures count for machines like
theirs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import options, report, table

COMMITTED = Path(__file__).parent / "results" / "guard.json"
LEAST = 0.05  # a change by less is none, however quiet the machine was


@dataclass(frozen=True)
class Ratio:
    """A ratio as it was measured, once a repeat; more of it is worse.

    Attributes:
        name: `a/b`, the sides.
    """

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def noise(self) -> float:
        """How far its values lie apart, as a share of their median."""
        return (max(self.values) - min(self.values)) / self.median


@dataclass(frozen=True)
class Verdict:
    """What became of a ratio.

    Attributes:
        change: by what share the median is worse than before; below 0 it is better.
        allowed: what noise may account for.
    """

    name: str
    change: float
    allowed: float

    @property
    def has_fallen(self) -> bool:
        return self.change > self.allowed


def judged(before: Sequence[Ratio], now: Sequence[Ratio]) -> list[Verdict]:
    """A verdict on each ratio that was measured before; what is new has none."""
    known = {ratio.name: ratio for ratio in before}
    return [
        Verdict(
            ratio.name,
            ratio.median / known[ratio.name].median - 1,
            max(LEAST, ratio.noise + known[ratio.name].noise),
        )
        for ratio in now
        if ratio.name in known
    ]


def missing(before: Sequence[Ratio], now: Sequence[Ratio]) -> list[str]:
    """Names of ratios that were committed and not measured."""
    measured = {ratio.name for ratio in now}
    return [ratio.name for ratio in before if ratio.name not in measured]


def read(text: str) -> list[Ratio]:
    """The ratios of a file of results."""
    found: Mapping[str, Sequence[float]] = json.loads(text)["ratios"]
    return [Ratio(name, tuple(values)) for name, values in found.items()]


def measured(repeats: int) -> list[Ratio]:
    """All ratios, each from sides that ran one after the other."""
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        for measure in (processes, fits, head_steps):
            for name, value in measure().items():
                found.setdefault(name, []).append(value)
                print(f"{number + 1}  {name:<24} {value:.3f}", flush=True)
    return [Ratio(name, tuple(values)) for name, values in found.items()]


def processes() -> dict[str, float]:
    """Whole processes: what a run costs beside the imports that it cannot do without."""
    from whole_process import IMPORTS, cold_and_warm, run, seconds

    imports = min(seconds(lambda: run(IMPORTS)) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        found = cold_and_warm("alexnet", Path(folder))
    return {
        "cold process/imports": found["cold"] / imports,
        "warm process/imports": found["warm"] / imports,
    }


def fits() -> dict[str, float]:
    """`fl.fit` in one process: cold beside the floor by hand, warm beside a plain loop."""
    import hymenoptera

    found = hymenoptera.one_run("alexnet", hymenoptera.EPOCHS, 1)
    return {
        "cold/floor": found["cold"] / found["floor"],
        "warm/plain loop": found["warm"] / found["plain_loop"],
    }


def head_steps() -> dict[str, float]:
    """Steps on stored features beside those of a bare loop."""
    import head_steps as steps
    import torch
    from shared import seconds

    features = torch.randn(steps.SAMPLES, steps.WIDTH)
    targets = torch.randint(0, 2, (steps.SAMPLES,))
    with tempfile.TemporaryDirectory() as folder:
        data = steps.stored(features, targets, folder)
        bare = min(seconds(lambda: steps.bare(steps.head(), features, targets)) for _ in range(2))
        return {"head step/bare step": steps.frostline(data, targets) / bare}


def main() -> int:
    chosen = options(__doc__, update=False)
    import hymenoptera
    from shared import threads

    threads()
    hymenoptera.warm_up()
    now = measured(chosen.repeats)
    figures: dict[str, Any] = {"ratios": {ratio.name: ratio.values for ratio in now}}
    if chosen.update:
        report(figures, COMMITTED)
        return 0
    report(figures, chosen.json)
    if not COMMITTED.is_file():
        print("nothing is committed to compare with: --update writes it")
        return 0
    before = read(COMMITTED.read_text())
    return told(judged(before, now), missing(before, now))


def told(verdicts: Sequence[Verdict], lost: Sequence[str]) -> int:
    """Say what became of each; 1 where one has fallen or was not measured."""
    rows = [("ratio", "worse by", "noise", "")]
    for verdict in verdicts:
        word = "FELL" if verdict.has_fallen else "holds"
        rows.append((verdict.name, f"{verdict.change:+.1%}", f"{verdict.allowed:.1%}", word))
    table(rows)
    for name in lost:
        print(f"{name} was committed, and not measured")
    return int(bool(lost) or any(verdict.has_fallen for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
