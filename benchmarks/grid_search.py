"""What does a search over 12 settings cost beside one fit? MobileNetV2 frozen, hymenoptera.

    python benchmarks/grid_search.py [--repeats 3] [--folds 3] [--epochs 10] [--threads 0]

Each side begins in a process of its own, with an empty feature store: one `FrozenClassifier.fit`
on all 397 photos, and a `GridSearchCV` over four learning rates and three weight decays on as many
folds as asked, with its last fit on all. Seconds are those of the call, without imports; beside
them stand those of the processor, which other work on the machine moves less. `--threads 0` is all
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from shared import DATA, median, options, report, seconds

import frostline as fl

GRID = {"lr": [3e-4, 1e-3, 3e-3, 1e-2], "weight_decay": [0.0, 0.01, 0.1]}


def main() -> None:
    chosen = options(__doc__, folds=3, epochs=10, threads=0, side="")
    if chosen.side:
        print(json.dumps(one_side(chosen)))
        return
    found: dict[str, list[dict[str, float]]] = {"fit": [], "search": []}
    for _ in range(chosen.repeats):
        for side, runs in found.items():
            runs.append(in_a_process(side, chosen))
            print(side, runs[-1], flush=True)
    fit, search = (median([run["seconds"] for run in runs]) for runs in found.values())
    of_fit, of_search = (median([run["cpu"] for run in runs]) for runs in found.values())
    print(f"cold fit {fit:.1f} s, search {search:.1f} s: {search / fit:.2f} times")
    print(f"processor {of_fit:.1f} s, {of_search:.1f} s: {of_search / of_fit:.2f} times")
    result = {
        "settings": 12,
        "folds": chosen.folds,
        "epochs": chosen.epochs,
        "threads": chosen.threads,
        "repeats": chosen.repeats,
        "cold_fit": fit,
        "fit_again": median([run["again"] for run in found["fit"]]),
        "search": search,
        "ratio": search / fit,
        "cold_fit_cpu": of_fit,
        "search_cpu": of_search,
        "ratio_cpu": of_search / of_fit,
        "accuracy": found["search"][0]["accuracy"],
    }
    report(result, chosen.json)


def in_a_process(side: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Seconds of one side."""
    command = [sys.executable, __file__, "--side", side]
    for name in ("folds", "epochs", "threads"):
        command += [f"--{name}", str(vars(chosen)[name])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_side(chosen: argparse.Namespace) -> dict[str, float]:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    torch.set_num_threads(chosen.threads or os.cpu_count() or 1)
    files = sorted((DATA / "hymenoptera").glob("*/*/*.jp*g"))
    labels = [file.parent.name for file in files]
    with tempfile.TemporaryDirectory() as store:
        classifier = fl.FrozenClassifier(
            "mobilenet_v2",
            weights=str(DATA / "weights" / "mobilenet_v2.features.safetensors"),
            features=store,
            epochs=chosen.epochs,
        )
        cv = StratifiedKFold(chosen.folds, shuffle=True, random_state=0)
        search = GridSearchCV(classifier, GRID, cv=cv)
        fitted = classifier if chosen.side == "fit" else search
        start = time.process_time()
        took = seconds(lambda: fitted.fit(files, labels))
        found = {"seconds": took, "cpu": time.process_time() - start}
        if chosen.side == "fit":
            return {**found, "again": seconds(lambda: fitted.fit(files, labels))}
        return {**found, "accuracy": float(search.best_score_)}


if __name__ == "__main__":
    main()
