"""Which plan is best on 244 photos, and on 40? Accuracy and time of each, side by side.

    python benchmarks/plans.py [--folds 5] [--few-seeds 5] [--json FILE]

MobileNetV2 with its ImageNet weights and a new head. `train/` is divided into 5 folds; each plan
trains on four, takes its best epoch by the fifth, and is judged once on the 153 photos of `val/`,
which no choice has seen. For the few-shot part 20 photos of each class are drawn; there is nothing
to choose an epoch by but the training photos' own loss. Learning rates are the plans' defaults.
`plain` is the time that the steps of a plain loop would have taken, from steps timed before.
"""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from shared import DATA, median, network, options, report, seconds, table, threads

import frostline as fl
from frostline.data import ImageDataset, ImageSet, make_batches, read_splits
from frostline.devices import Compute
from frostline.engine import predict, summarised
from frostline.models import LoadedModel
from frostline.tasks import Classification

BATCH = 32
Maker = Callable[[torch.nn.Module], fl.Plan]
PLANS: dict[str, Maker] = {
    "head only": lambda m: fl.Plan.head_only(m, epochs=10),
    "gradual": lambda m: fl.Plan.gradual(m, stages=4, epochs_each=3, lr=1e-4),
    "LP-FT": lambda m: fl.Plan.lp_ft(m, probe_epochs=5, tune_epochs=5),
    "full": lambda m: fl.Plan.full(m, epochs=6),
}
FEW: dict[str, Maker] = {
    "head only": lambda m: fl.Plan.head_only(m, epochs=15),
    "full": lambda m: fl.Plan.full(m, epochs=15),
}


def main() -> None:
    chosen = options(__doc__, folds=5, few_seeds=5)
    threads()
    splits = read_splits(DATA / "hymenoptera")
    result: dict[str, object] = {"folds": chosen.folds, "few_seeds": chosen.few_seeds}
    warm_up(splits.train, splits.val)
    folds = [parts(splits.train, fold, chosen.folds) for fold in range(chosen.folds)]
    result["all photos"] = compare(PLANS, folds, splits.val)
    few = [
        (drawn, drawn) for drawn in (draw(splits.train, seed) for seed in range(chosen.few_seeds))
    ]
    result["40 photos"] = compare(FEW, few, splits.val)
    report(result, chosen.json)


def warm_up(train: ImageSet, val: ImageSet) -> None:
    """Imports and first calls, which no side is to pay for."""
    loaded = network("mobilenet_v2")
    small = replace(train, samples=train.samples[::40])
    fitted(loaded, PLANS["head only"](loaded.model), (small, small), 0)
    judged(loaded, replace(val, samples=val.samples[::40]))


def parts(images: ImageSet, fold: int, folds: int) -> tuple[ImageSet, ImageSet]:
    """Training and validation part of one fold, each class divided alike."""
    of_class = defaultdict(list)
    for sample in images.samples:
        of_class[sample.label].append(sample)
    inside, outside = [], []
    for label, samples in sorted(of_class.items()):
        random.Random(label).shuffle(samples)
        outside += samples[fold::folds]
        inside += [s for place, s in enumerate(samples) if place % folds != fold]
    return replace(images, samples=tuple(inside)), replace(images, samples=tuple(outside))


def draw(images: ImageSet, seed: int, of_each: int = 20) -> ImageSet:
    """A few photos of each class."""
    picked = []
    for label in range(len(images.classes)):
        samples = [sample for sample in images.samples if sample.label == label]
        picked += random.Random(seed).sample(samples, of_each)
    return replace(images, samples=tuple(picked))


def compare(
    plans: dict[str, Maker], divisions: Sequence[tuple[ImageSet, ImageSet]], test: ImageSet
) -> dict[str, dict[str, object]]:
    """Medians over the divisions, for each plan."""
    found = {}
    rows = [("plan", "accuracy", "lowest", "highest", "time", "plain steps", "phases")]
    for name, maker in plans.items():
        runs = [one_run(maker, division, test, n) for n, division in enumerate(divisions)]
        accuracies = [run["accuracy"] for run in runs]
        found[name] = {
            "accuracy": median(accuracies),
            "accuracies": accuracies,
            "seconds": median([run["seconds"] for run in runs]),
            "plain_seconds": median([run["plain_seconds"] for run in runs]),
            "phases": runs[0]["phases"],
        }
        times = [f"{found[name][key]:.1f} s" for key in ("seconds", "plain_seconds")]
        spread = [f"{value:.3f}" for value in (min(accuracies), max(accuracies))]
        phases = ", ".join(runs[0]["phases"])
        rows.append((name, f"{found[name]['accuracy']:.3f}", *spread, *times, phases))
        print(*rows[-1], flush=True)
    table(rows)
    return found


def one_run(
    maker: Maker, division: tuple[ImageSet, ImageSet], test: ImageSet, seed: int
) -> dict[str, object]:
    loaded = network("mobilenet_v2")
    plan = maker(loaded.model)
    run: list[fl.Run] = []
    took = seconds(lambda: run.append(fitted(loaded, plan, division, seed)))
    each = [phase.plain_step_seconds * phase.steps for phase in run[0].phases]
    return {
        "accuracy": judged(loaded, test),
        "seconds": took,
        "plain_seconds": sum(each),
        "phases": [f"{p.feed_seconds + p.seconds:.1f}" for p in run[0].phases],
    }


def fitted(
    loaded: LoadedModel, plan: fl.Plan, division: tuple[ImageSet, ImageSet], seed: int
) -> fl.Run:
    train, val = (ImageDataset(part, loaded.preprocessing) for part in division)
    with tempfile.TemporaryDirectory() as store:
        return fl.fit(
            loaded.model,
            train,
            val,
            plan=plan,
            features=store,
            batch_size=BATCH,
            seed=seed,
            monitor="loss",
        )


def judged(loaded: LoadedModel, test: ImageSet) -> float:
    data = ImageDataset(test, loaded.preprocessing)
    batches = make_batches(data, batch_size=BATCH, shuffle=False, seed=0)
    compute, task = Compute(), Classification(test.classes)
    found = predict(loaded.model.to(compute.device), batches, compute)
    return summarised(task, found)["accuracy"]


if __name__ == "__main__":
    main()
