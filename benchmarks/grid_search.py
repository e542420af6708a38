"""What does a search over 12 settings cost beside one fit? MobileNetV2 frozen, hymenoptera.

    python benchmarks/grid_search.py [--repeats 3] [--folds 3] [--epochs 10] [--json FILE]

Each side begins in a process of its own, with an empty feature store: one `FrozenClassifier.fit`
on all 397 photos, and a `GridSearchCV` over four learning rates and three weight decays on as many
folds as asked, with its last fit on all. Seconds are those of the call, without imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from shared import DATA, median, options, report, seconds, threads

import frostline as fl

GRID = {"lr": [3e-4, 1e-3, 3e-3, 1e-2], "weight_decay": [0.0, 0.01, 0.1]}


def main() -> None:
    chosen = options(__doc__, folds=3, epochs=10, side="")
    if chosen.side:
        print(json.dumps(one_side(chosen.side, chosen.folds, chosen.epochs)))
        return
    found: dict[str, list[dict[str, float]]] = {"fit": [], "search": []}
    for _ in range(chosen.repeats):
        for side, runs in found.items():
            runs.append(in_a_process(side, chosen.folds, chosen.epochs))
            print(side, runs[-1], flush=True)
    fit, search = (median([run["seconds"] for run in runs]) for runs in found.values())
    each = median([run["again"] for run in found["fit"]])
    print(
        f"cold fit {fit:.1f} s, again {each:.2f} s; search {search:.1f} s: {search / fit:.2f} times"
    )
    result = {
        "settings": 12,
        "folds": chosen.folds,
        "epochs": chosen.epochs,
        "repeats": chosen.repeats,
        "cold_fit": fit,
        "fit_again": each,
        "search": search,
        "ratio": search / fit,
        "accuracy": found["search"][0]["accuracy"],
    }
    report(result, chosen.json)


def in_a_process(side: str, folds: int, epochs: int) -> dict[str, float]:
    """Seconds of one side."""
    command = [sys.executable, __file__, "--side", side]
    command += ["--folds", str(folds), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_side(side: str, folds: int, epochs: int) -> dict[str, float]:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    threads()
    files = sorted((DATA / "hymenoptera").glob("*/*/*.jp*g"))
    labels = [file.parent.name for file in files]
    with tempfile.TemporaryDirectory() as store:
        classifier = fl.FrozenClassifier(
            "mobilenet_v2",
            weights=str(DATA / "weights" / "mobilenet_v2.features.safetensors"),
            features=store,
            epochs=epochs,
        )
        if side == "fit":
            took = seconds(lambda: classifier.fit(files, labels))
            return {"seconds": took, "again": seconds(lambda: classifier.fit(files, labels))}
        cv = StratifiedKFold(folds, shuffle=True, random_state=0)
        search = GridSearchCV(classifier, GRID, cv=cv)
        took = seconds(lambda: search.fit(files, labels))
        return {"seconds": took, "accuracy": float(search.best_score_)}


if __name__ == "__main__":
    main()
