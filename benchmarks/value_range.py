"""Does it matter in which numbers a grey picture is stored? One network, six ways, in one run.

    python benchmarks/value_range.py [--ways "8 bits" ...] [--epochs 25] [--json FILE]

hymenoptera in grey, 256 pixels on the shorter side, written as TIFF: in 8 bits, and the same
pictures in numbers that are wider than their values. `set` is the validation accuracy with the one
range that the audit finds for all pictures, `type` that with the range of the type, 0..65535
of integers and 0..1 of floats, which is what reading each file for itself comes to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shared import DATA, network, options, report, table

import frostline as fl
from frostline.data import ImageDataset, ImageSet, Levels, Sample, audit, open_image, read_splits
from frostline.errors import FrostlineError

WAYS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.generic]]] = {
    "8 bits": lambda grey: grey,
    "8 bits in 16": lambda grey: grey.astype(np.uint16),
    "12 bits in 16": lambda grey: grey.astype(np.uint16) * 16,
    "12 bits in int32": lambda grey: grey.astype(np.int32) * 16,
    "float 0..3000": lambda grey: (grey * (3000 / 255)).astype(np.float32),
    "float to 1.02": lambda grey: (grey * (1.02 / 255)).astype(np.float32),
}


def main() -> None:
    chosen = options(__doc__, ways=tuple(WAYS), epochs=25)
    rows = [("stored as", "range", "set", "type")]
    result: dict[str, object] = {"epochs": chosen.epochs}
    for name in chosen.ways:
        way = WAYS[name]
        with tempfile.TemporaryDirectory() as folder:
            splits = read_splits(DATA / "hymenoptera")
            splits = splits.each(lambda images, to=Path(folder), way=way: stored(images, to, way))
            found = audit(splits, bad_images="error")
            by_set = accuracy(found.splits.sets.values(), found.levels, chosen.epochs)
            by_type = by_set
            if found.levels is not None:
                by_type = accuracy(found.splits.sets.values(), None, chosen.epochs)
        result[name] = {"levels": found.levels, "set": by_set, "type": by_type}
        rows.append((name, str(found.levels or ""), *(f"{one:.3f}" for one in (by_set, by_type))))
    table(rows)
    report(result, chosen.json)


def stored(
    images: ImageSet, folder: Path, way: Callable[[NDArray[np.uint8]], NDArray[np.generic]]
) -> ImageSet:
    """The same pictures in grey, stored another way."""
    samples = []
    for sample in images.samples:
        grey = open_image(sample.path).convert("L")
        scale = 256 / min(grey.size)
        grey = grey.resize((round(grey.width * scale), round(grey.height * scale)))
        path = folder / f"{images.classes[sample.label]}-{sample.path.stem}.tif"
        Image.fromarray(way(np.asarray(grey))).save(path)
        samples.append(Sample(path, sample.label))
    return replace(images, samples=tuple(samples))


def accuracy(sets: Iterable[ImageSet], levels: Levels | None, epochs: int) -> float:
    """Of the best epoch on the validation pictures; not a number where pictures are refused."""
    loaded = network("mobilenet_v2")
    train, val = (ImageDataset(one, loaded.preprocessing, levels=levels) for one in sets)
    with tempfile.TemporaryDirectory() as store:
        try:
            run = fl.fit(loaded.model, train, val, features=store, epochs=epochs, batch_size=32)
        except FrostlineError:
            return float("nan")
    return float(run.best.validation["accuracy"])


if __name__ == "__main__":
    main()
