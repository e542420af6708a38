"""Does it hold at 50,000 pictures? CIFAR-10, SqueezeNet at 64 px, 5 epochs, in one run.

    python benchmarks/cifar10.py [--samples 50000] [--epochs 5] [--json FILE]

The plain loop (DataLoader with 2 workers) is timed on a share of the pictures and scaled. Frostline
is cold, then warm; its largest resident memory is told beside the size of the features on disk.
"""

from __future__ import annotations

import resource
import tarfile
import tempfile
from pathlib import Path

import torch
from hymenoptera import plain_loop
from shared import DATA, options, report, seconds, threads

import frostline as fl
from frostline import Preprocessing
from frostline.data import ImageDataset, ImageSet, read_set
from frostline.models import load_model

PIXELS = 64
PLAIN_SHARE = 25  # of the pictures, one in so many is timed


def main() -> None:
    chosen = options(__doc__, samples=50_000, epochs=5)
    threads()
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(DATA / "cifar10.tar.xz") as archive:
            archive.extractall(scratch, filter="data")
        root = next(path.parent for path in Path(scratch).rglob("train") if path.is_dir())
        train, val = (dataset(root / part) for part in ("train", "test"))
        train = every(train, max(1, len(train) // chosen.samples))
        result = compare(train, every(val, 10), Path(scratch) / "store", chosen.epochs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["peak_resident_bytes"] = peak
    print({name: round(value, 2) for name, value in result.items()})
    report(result, chosen.json)


def dataset(folder: Path) -> ImageDataset:
    classes = sorted(path.name for path in folder.iterdir())
    preprocessing = Preprocessing(resize=PIXELS, crop=(PIXELS, PIXELS))
    return ImageDataset(read_set(folder, classes=classes), preprocessing)


def every(data: ImageDataset, step: int) -> ImageDataset:
    samples = data.images.samples[::step]
    return ImageDataset(ImageSet(data.classes, samples), data.preprocessing)


def model() -> torch.nn.Module:
    weights = DATA / "weights" / "squeezenet1_1.pth"
    loaded = load_model("squeezenet1_1", weights=str(weights), classes=10)
    fl.train_only(loaded.model, loaded.head)
    return loaded.model


def compare(train: ImageDataset, val: ImageDataset, store: Path, epochs: int) -> dict[str, float]:
    part = every(train, PLAIN_SHARE), every(val, PLAIN_SHARE)
    scale = len(train) / len(part[0])
    plain = seconds(lambda: plain_loop(model(), *part, 1)) * scale * epochs

    def fit(lr: float) -> fl.Run:
        return fl.fit(model(), train, val, features=store, epochs=epochs, lr=lr, batch_size=64)

    found: list[fl.Run] = []
    cold = seconds(lambda: found.append(fit(1e-3)))
    warm = seconds(lambda: found.append(fit(3e-3)))
    print(*found[0].says, sep="\n")
    return {
        "samples": len(train),
        "epochs": epochs,
        "plain_loop": plain,
        "cold": cold,
        "warm": warm,
        "cold_times": plain / cold,
        "warm_times": plain / warm,
        "features_bytes": sum(f.stat().st_size for f in store.rglob("*") if f.is_file()),
        "accuracy": found[0].best.validation.accuracy,
    }


if __name__ == "__main__":
    main()
