"""Real photos, through tables and masks: the stored path has the bits of the plain loop."""

from __future__ import annotations

import copy
import csv
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import frostline as fl
from frostline.data import ImageDataset, audit, open_image, read_task_splits
from frostline.models import load_model

SMALL = fl.Preprocessing(resize=56, crop=(48, 48))


@pytest.fixture(scope="module")
def folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 12 photos with numbers and labels, and masks of their dark and bright parts."""
    if not (data_dir / "hymenoptera").is_dir():
        pytest.skip(f"no photos of ants and bees in {data_dir}")
    root, rows = tmp_path_factory.mktemp("photos"), []
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for name in ("ants", "bees"):
        for photo in islice(sorted((data_dir / "hymenoptera" / "train" / name).iterdir()), 6):
            pixels = np.asarray(open_image(photo))
            grey, (red, green, _) = pixels.mean(axis=2), pixels.mean(axis=(0, 1))
            rows.append((photo, red, green, int(name == "bees"), int(grey.mean() > 120)))
            (root / "images" / photo.name).symlink_to(photo)
            mask = Image.fromarray((grey > 120).astype(np.uint8))
            mask.save(root / "masks" / f"{photo.stem}.png")
    with (root / "targets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "red", "green", "bee", "bright"), *rows])
    return root


@pytest.mark.parametrize(
    ("task", "column"),
    [("regression", "red,green"), ("multilabel", "bee,bright"), ("segmentation", "label")],
)
def test_stored_features_of_photos_give_the_plain_loops_bits(
    task: Any, column: str, folder: Path, tmp_path: Path
) -> None:
    table = folder if task == "segmentation" else folder / "targets.csv"
    found = audit(read_task_splits(table, task=task, label_column=column), bad_images="error")
    blocks = list(load_model("squeezenet1_1", weights="none", classes=2).model.features)[:5]  # type: ignore[arg-type]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if task != "segmentation" else []
    model = nn.Sequential(*blocks, *pool, nn.Linear(128, 2) if pool else nn.Conv2d(128, 2, 1))
    fl.train_only(model, "stage:-1")
    train, val = (
        ImageDataset(part, SMALL, digests=found.digests)
        for part in (found.splits.train, found.splits.val)
    )
    asked: dict[str, Any] = {"task": task, "epochs": 2, "batch_size": 8, "lr": 0.01}
    other = copy.deepcopy(model)
    plain = fl.fit(model, train, val, features="off", device="cpu", **asked)
    stored = fl.fit(other, train, val, features=tmp_path, precision="exact", device="cpu", **asked)
    assert stored.computed == 12
    assert str(fl.fingerprint(model)) == str(fl.fingerprint(other))
    assert [r.validation for r in plain.history] == [r.validation for r in stored.history]
    losses = [record.train["loss"] for record in plain.history]
    assert losses[1] < losses[0]
