"""What does a run of 25 epochs on 397 photos take from the command to the prompt?

    python benchmarks/whole_process.py [--networks alexnet resnet18] [--repeats 3] [--json FILE]

Whole processes, one after another: `imports` is `python -c "import torch, torchvision"`, `plain`
the tutorial's loop as a program of its own (`plain_process.py`, of which a few epochs are timed,
and scaled to 25: all cost the same), `cold` is `frostline train` where nothing is stored, and
`warm` the same again with another learning rate. Medians.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared import DATA, median, options, report, seconds, table

PHOTOS = DATA / "hymenoptera"
HERE = Path(__file__).parent
NETWORKS = ("alexnet", "resnet18")
EPOCHS = 25
SIDES = ("imports", "plain", "cold", "warm")
IMPORTS = [sys.executable, "-c", "import torch, torchvision"]


def main() -> None:
    chosen = options(__doc__, networks=NETWORKS, plain_epochs=2)
    rows = [("network", *SIDES, "plain/cold", "plain/warm", "warm/imports")]
    result: dict[str, object] = {"epochs": EPOCHS, "repeats": chosen.repeats}
    run(IMPORTS)  # the disk's part, which no side is to pay for
    for name in chosen.networks:
        runs = [one_run(name, chosen.plain_epochs) for _ in range(chosen.repeats)]
        found = {side: median([one[side] for one in runs]) for side in SIDES}
        result[name] = {**found, "runs": runs}
        ratios = (found["plain"] / found["cold"], found["plain"] / found["warm"])
        rows.append(
            (
                name,
                *(f"{found[side]:.2f} s" for side in SIDES),
                *(f"{ratio:.1f}" for ratio in ratios),
                f"{found['warm'] / found['imports']:.2f}",
            )
        )
    table(rows)
    report(result, chosen.json)


def one_run(name: str, plain_epochs: int) -> dict[str, float]:
    """Seconds of each side, in turn."""
    found = {"imports": seconds(lambda: run(IMPORTS)), "plain": plain(name, plain_epochs)}
    with tempfile.TemporaryDirectory() as folder:
        found |= cold_and_warm(name, Path(folder))
    print(name, {side: round(value, 2) for side, value in found.items()}, flush=True)
    return found


def plain(name: str, epochs: int) -> float:
    """The loop's whole process, with as many epochs more as were not run."""
    told: list[str] = []
    command = [sys.executable, str(HERE / "plain_process.py"), str(PHOTOS), name, str(epochs)]
    whole = seconds(lambda: told.append(run(command)))
    return whole + (EPOCHS - epochs) * median(json.loads(told[0]))


def cold_and_warm(name: str, folder: Path) -> dict[str, float]:
    """Two runs on one store, which is empty before the first."""

    def train(out: str, lr: str) -> float:
        head = ["--on", "logits", "--head", "100"] if name == "alexnet" else []
        asked = [sys.executable, "-m", "frostline", "train", str(PHOTOS), "--model", name, *head]
        asked += ["--weights", "none", "--epochs", str(EPOCHS), "--lr", lr]
        store = {"FROSTLINE_FEATURES": str(folder / "features")}
        return seconds(lambda: run([*asked, "--out", str(folder / out)], **store))

    return {"cold": train("cold", "1e-3"), "warm": train("warm", "3e-3")}


def run(command: Sequence[str], **environment: str) -> str:
    """What a process says, which has to go well."""
    sources = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": sources, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
