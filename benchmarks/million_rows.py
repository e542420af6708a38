"""What does a store of a million rows cost: to fill, open, read, look into and prune?

    python benchmarks/million_rows.py [--rows 10000 100000 1000000] [--repeats 1] [--json FILE]

Synthetic rows of 32 float32. Each number of rows is filled and used by processes of its own, of
which the peak of resident memory is told, with what torch and frostline alone take:

- fill: claimed 128 at a time, as an extraction does in batches of 32, put in batches of 32.
- open: all rows found and checked, ready to be read.
- epoch: every row once, in an order by chance, in batches of 256.
- lookup: of 10,000 keys that are not there.
- ls, prune: what is there; then all of it goes.

Seconds are of a processor core, which others on the machine do not lengthen. Growth is what ten
times the rows cost, as the exponent of a power: 1 is linear.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frostline.store import FeatureKey, FeatureStore, StoredRows, ValueSpec

WIDTH = 32
CLAIMED, PUT, BATCH, NEW = 128, 32, 256, 10_000
KEY = FeatureKey({"prefix": "synthetic"})
VALUES = (ValueSpec("value 0", (WIDTH,), torch.float32),)
STEPS = ("fill", "open", "epoch", "lookup", "ls", "prune")


def main() -> None:
    if len(sys.argv) > 3 and sys.argv[1] in ("--fill", "--use"):
        work = fill if sys.argv[1] == "--fill" else use
        print(json.dumps(work(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    from shared import options, report, table  # much, of which the measured processes need nothing

    chosen = options(__doc__, rows=SIZES)
    found = {rows: measured(int(rows), chosen.repeats) for rows in chosen.rows}
    result: dict[str, Any] = {"row_bytes": 4 * WIDTH, "rows": found, "growth": growths(found)}
    heads = ["rows", *(f"{step} s" for step in STEPS), "peak fill MB", "peak use MB", "idle MB"]
    body = [
        [
            rows,
            *(f"{figures[step]:.3g}" for step in STEPS),
            *(f"{figures[name] / 1e6:.0f}" for name in ("fill_peak", "use_peak", "idle")),
        ]
        for rows, figures in found.items()
    ]
    table([heads, *body])
    for step, growth in result["growth"].items():
        print(f"{step}: ten times the rows cost 10^{growth:.2f}")
    report(result, chosen.json)


SIZES = ("10000", "100000", "1000000")


def measured(rows: int, repeats: int) -> dict[str, float]:
    """Medians of what both processes told."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append({**told("--fill", folder, rows), **told("--use", folder, rows)})
    return {name: statistics.median([run[name] for run in runs]) for name in runs[0]}


def told(what: str, folder: str, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, what, folder, str(rows)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer)
    return found


def ids(first: int, count: int) -> list[bytes]:
    """16 bytes each, as by chance, and the same for the same number."""
    numbers = np.arange(first, first + count, dtype=np.uint64)[:, None]
    mixed = (numbers + np.array([1, 2], dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    raw = mixed.tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def fill(root: Path, rows: int) -> dict[str, float]:
    features = FeatureStore(root).open(KEY, VALUES)

    def work() -> None:
        with features.writer() as writer:
            for first in range(0, rows, CLAIMED):
                some = ids(first, min(CLAIMED, rows - first))
                mine = writer.claim(some, len(some))
                for start in range(0, len(mine), PUT):
                    part = mine[start : start + PUT]
                    values = torch.full((len(part), WIDTH), float(first))
                    writer.put([some[at] for at in part], [values])

    return {"fill": seconds(work), "fill_peak": peak()}


def use(root: Path, rows: int) -> dict[str, float]:
    idle, all_ids = peak(), ids(0, rows)
    store = FeatureStore(root)
    features = store.open(KEY, VALUES)
    opened: list[Any] = []
    figures = {"open": seconds(lambda: opened.append(features.read(all_ids)))}
    figures["epoch"] = seconds(lambda: epoch(opened[0]))
    new = ids(rows, NEW)
    missing: list[int] = []
    figures["lookup"] = seconds(lambda: missing.extend(features.missing(new)))
    assert len(missing) == NEW
    figures["ls"] = seconds(store.ls)
    figures["use_peak"] = peak()
    opened.clear()
    gone: list[Any] = []
    figures["prune"] = seconds(lambda: gone.extend(store.prune(max_bytes=0)))
    assert [entry.rows for entry in gone] == [rows]
    return {**figures, "idle": idle}


def epoch(found: StoredRows) -> None:
    for batch in batches(len(found)):
        found.gather(batch)


def batches(rows: int) -> Iterator[torch.Tensor]:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    yield from order.split(BATCH)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak() -> float:
    """Most bytes that were resident in this process so far."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024


def growths(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each step, from the second largest number of rows to the largest."""
    if len(found) < 2:
        return {}
    (few, less), (many, more) = list(found.items())[-2:]
    ratio = math.log10(int(many) / int(few))
    return {step: math.log10(more[step] / less[step]) / ratio for step in STEPS}


if __name__ == "__main__":
    main()
