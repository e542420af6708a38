"""Which epoch should a run keep? Four rules on three data sets, judged on pictures kept apart.

    python benchmarks/kept_epoch.py [--repeats 5] [--json FILE]

A head learns on the pooled features of a frozen network for 15 epochs, in runs that differ in seed,
division and first weights. Each rule keeps one epoch by the few validation samples: Frostline's
(`monitor="auto"`), the first of the highest accuracy, the first of the lowest loss, the last. What
is shown is the kept epoch's accuracy on all the other samples, as a mean over the runs.
"""

from __future__ import annotations

import io
import random
import statistics
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from shared import DATA, network, options, report, table, threads
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.engine import Hook, Training

EPOCHS = 15
CIFAR_SAMPLES = 4000
RULES = ("auto", "accuracy", "loss", "last")
# name: samples to train on, and to validate with
DIVISIONS = {
    "hymenoptera": ((200, 60),),
    "cifar10": ((1000, 200), (1000, 1000)),
    "digits": ((100, 50), (300, 100)),
}


def main() -> None:
    chosen = options(__doc__)
    threads()
    rows = [("data", "training", "validation", *RULES)]
    result: dict[str, object] = {"epochs": EPOCHS, "repeats": chosen.repeats}
    for name, (inputs, targets) in data_sets():
        for train, val in DIVISIONS[name]:
            found = compare(inputs, targets, train, val, chosen.repeats)
            result[f"{name} {train}+{val}"] = found
            shown = (f"{found[rule]:.4f}" for rule in RULES)
            rows.append((name, str(train), str(val), *shown))
    table(rows)
    report(result, chosen.json)


def data_sets() -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    places = [(part, name) for part in ("train", "val") for name in ("ants", "bees")]
    files = [
        (Image.open(file), ("ants", "bees").index(name))
        for part, name in places
        for file in sorted((DATA / "hymenoptera" / part / name).iterdir())
    ]
    yield "hymenoptera", features(*zip(*files, strict=True), side=160)
    with tarfile.open(DATA / "cifar10.tar.xz") as archive:
        members = [m for m in archive if m.isfile() and "test" in m.name.split("/")]
        names = sorted({m.name.split("/")[-2] for m in members})
        chosen = [
            (
                Image.open(io.BytesIO(archive.extractfile(m).read())),
                names.index(m.name.split("/")[-2]),
            )
            for m in random.Random(0).sample(members, CIFAR_SAMPLES)
        ]
    yield "cifar10", features(*zip(*chosen, strict=True), side=64)
    digits = load_digits()
    written = [Image.fromarray((a * 255 / 16).astype(np.uint8)) for a in digits.images]
    yield "digits", features(written, digits.target.tolist(), side=64)


@torch.no_grad()
def features(
    pictures: Sequence[Image.Image], labels: Sequence[int], side: int
) -> tuple[Tensor, Tensor]:
    """Pooled features of MobileNetV2 with its ImageNet weights."""
    backbone = network("mobilenet_v2").model.features.eval()
    as_input = fl.Preprocessing(resize=side, crop=(side, side))
    batches = (pictures[start : start + 32] for start in range(0, len(pictures), 32))
    pooled = [
        backbone(torch.stack([as_input(one.convert("RGB")) for one in batch])).mean((2, 3))
        for batch in batches
    ]
    return torch.cat(pooled), torch.tensor(labels)


class Judge(Hook):
    """The accuracy on samples kept apart, after each epoch."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.found: list[float] = []

    def on_epoch(self, training: Training) -> None:
        inputs, targets = self.data.tensors
        with torch.no_grad():
            predicted = training.model.eval()(inputs).argmax(1)
        self.found.append(float((predicted == targets).double().mean()))


def compare(
    inputs: Tensor, targets: Tensor, train: int, val: int, repeats: int
) -> dict[str, float]:
    kept = defaultdict(list)
    classes = [str(label) for label in range(int(targets.max()) + 1)]
    for seed in range(repeats):
        for hidden in ((), (100,)):
            torch.manual_seed(seed)
            places = torch.randperm(len(inputs)).split([train, val, len(inputs) - train - val])
            parts = [TensorDataset(inputs[place], targets[place]) for place in places]
            widths = [inputs.shape[1], *hidden, len(classes)]
            layers = [nn.Linear(*pair) for pair in pairwise(widths)]
            head = nn.Sequential(*(part for layer in layers for part in (nn.ReLU(), layer)))
            judge = Judge(parts[2])
            run = fl.fit(head, *parts[:2], epochs=EPOCHS, seed=seed, lr=3e-3, classes=classes,
                         features="off", hooks=[judge])  # fmt: skip
            found = [record.validation for record in run.history]
            accuracies, losses = ([epoch[name] for epoch in found] for name in ("accuracy", "loss"))
            kept["auto"].append(judge.found[run.best.epoch - 1])
            kept["accuracy"].append(judge.found[accuracies.index(max(accuracies))])
            kept["loss"].append(judge.found[losses.index(min(losses))])
            kept["last"].append(judge.found[-1])
    return {rule: statistics.mean(values) for rule, values in kept.items()}


if __name__ == "__main__":
    main()
