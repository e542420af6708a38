"""Do tasks beyond classification keep every bit, and reach what a baseline does?

    python benchmarks/tasks.py [--tasks regression ...] [--data cifar10] [--epochs 40] [--json FILE]

Targets are made from the 244 + 153 photos of hymenoptera, or from 400 + 200 pictures of CIFAR-10:
their mean red, green and blue (regression); whether one shows a bee (an animal, with CIFAR-10), is
bright, green, or rich in contrast (multi-label); and
dark, middle and bright parts by thresholds, as PNG masks beside the pictures (segmentation). The
network is MobileNetV2 with ImageNet weights at 112 pixels, frozen but its last layer; for numbers
and masks its first seven blocks, pooled or not, and a linear layer. `plain-epochs` of a plain loop
and of a run from stored features with `precision="exact"` are compared bit for bit; `epochs` from
stored features are held against scikit-learn on the same features: ridge, or logistic regression
for each label or pixel. The strength of the first two is chosen by cross-validation on the training
samples; the head has no such choice: the recipe's defaults but for the learning rate. All in one
process and one thread.
"""

from __future__ import annotations

import copy
import csv
import tarfile
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from shared import DATA, network, options, report, seconds, table
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from torch import nn

import frostline as fl
from frostline.data import ImageDataset, Splits, open_image, read_splits, read_task_splits
from frostline.models import replace_classifier
from frostline.tasks import Metrics

TASKS = ("regression", "multilabel", "segmentation")
MONITORED = {"regression": "r2", "multilabel": "mean_average_precision", "segmentation": "mean_iou"}
LR = {"regression": 3e-2, "multilabel": 1e-2, "segmentation": 3e-2}
LONGER = {"regression": 5}  # times the epochs: 32 numbers a photo, and eight steps an epoch
LABELS = ("shown", "bright", "green", "contrast")
SHOWN = ("bees", "bird", "cat", "deer", "dog", "frog", "horse")  # of both sets' classes
CIFAR10 = {"train": 400, "val": 200}  # pictures of it
BLOCKS = 7  # of the network, that are kept for numbers and masks
PIXELS = 20_000  # that the logistic regression of pixels is fitted on


def main() -> None:
    chosen = options(__doc__, tasks=TASKS, data="hymenoptera", epochs=40, plain_epochs=3)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"epochs": chosen.epochs, "plain_epochs": chosen.plain_epochs}
    heads = ("task", "bits", "metric", "frostline", "baseline", "plain epoch", "stored epoch")
    rows: list[tuple[str, ...]] = [heads]
    with tempfile.TemporaryDirectory() as folder:
        write_targets(Path(folder), photos(chosen.data, Path(folder) / "pictures"))
        for name in chosen.tasks:
            found = measure(name, Path(folder), chosen.epochs, chosen.plain_epochs)
            result[name] = found
            print(name, found, flush=True)
            values = (f"{found['frostline']:.4f}", f"{found['baseline']:.4f}")
            times = (f"{found[key]:.3f} s" for key in ("plain_epoch", "stored_epoch"))
            rows.append((name, found["bits"], found["metric"], *values, *times))
    result["torchmetrics"] = against_torchmetrics()
    table(rows)
    print(result["torchmetrics"])
    report(result, chosen.json)


def photos(data: str, scratch: Path) -> Splits:
    """Those of the set, CIFAR-10's spread over its classes."""
    if data == "hymenoptera":
        return read_splits(DATA / data)
    with tarfile.open(DATA / "cifar10.tar.xz") as archive:
        archive.extractall(scratch, filter="data")
    root = next(path.parent for path in scratch.rglob("train") if path.is_dir())
    (root / "test").rename(root / "val")
    whole = read_splits(root)
    sets = {name: whole.sets[name] for name in CIFAR10}
    few = {name: part.samples[:: len(part) // CIFAR10[name]] for name, part in sets.items()}
    return replace(whole, **{name: replace(sets[name], samples=few[name]) for name in few})


def write_targets(folder: Path, splits: Splits) -> None:
    """`targets.csv` and, for segmentation, train/ and val/ with images/ and masks/."""
    rows = []
    for split, images in splits.sets.items():
        for sample in images.samples:
            pixels = np.asarray(open_image(sample.path)).astype(np.float32)
            colour, grey = pixels.mean(axis=(0, 1)), pixels.mean(axis=2)
            rows.append(
                {
                    "file": str(sample.path),
                    "split": split,
                    **dict(zip(("red", "green_mean", "blue"), map(float, colour), strict=True)),
                    "shown": int(splits.classes[sample.label] in SHOWN),
                    "bright": int(grey.mean() > 120),
                    "green": int(colour[1] > colour[0]),
                    "contrast": int(grey.std() > 60),
                }
            )
            name = f"{len(rows)}{sample.path.suffix}"
            mask = folder / split / "masks" / f"{len(rows)}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.digitize(grey, (85, 170)).astype(np.uint8)).save(mask)
            link = folder / split / "images" / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(sample.path)
    (folder / "classes.txt").write_text("dark\nmiddle\nbright\n")
    with (folder / "targets.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(name: str, folder: Path) -> Splits:
    if name == "segmentation":
        return read_task_splits(folder, task="segmentation")
    columns = {"regression": "red,green_mean,blue", "multilabel": ",".join(LABELS)}[name]
    return read_task_splits(folder / "targets.csv", task=name, label_column=columns)


def build(name: str, width: int) -> tuple[nn.Module, fl.Preprocessing]:
    """The network, frozen but its last layer, with as many outputs."""
    loaded = network("mobilenet_v2")
    model = loaded.model
    torch.manual_seed(0)
    if name == "multilabel":
        replace_classifier(model, classes=width)
        fl.train_only(model, loaded.head)
    else:
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if name == "regression" else []
        backbone = nn.Sequential(*list(model.features)[:BLOCKS], *pool)  # type: ignore[arg-type]
        head = nn.Linear(32, width) if pool else nn.Conv2d(32, width, 1)
        model = nn.Sequential(OrderedDict(backbone=backbone, classifier=head))
        fl.train_only(model, "classifier")
    return model, replace(loaded.preprocessing, resize=128, crop=(112, 112))


def measure(name: str, folder: Path, epochs: int, plain_epochs: int) -> dict[str, Any]:
    splits = read(name, folder)
    model, preprocessing = build(name, len(splits.train.label_names))
    train, val = (ImageDataset(part, preprocessing) for part in (splits.train, splits.val))

    def run(epochs: int, **more: Any) -> fl.Run:
        asked = {"task": name, "batch_size": 32, "lr": LR[name], "precision": "exact"}
        return fl.fit(copy.deepcopy(model), train, val, epochs=epochs, **asked, **more)

    store = folder / "features"
    plain, stored = run(plain_epochs, features="off"), run(plain_epochs, features=store)
    pairs = zip(plain.history, stored.history, strict=True)
    same = fl.fingerprint(plain.model) == fl.fingerprint(stored.model) and all(
        (a.train, a.validation) == (b.train, b.validation) for a, b in pairs
    )
    print(name, "equal" if same else "differ", flush=True)
    long = run(epochs * LONGER.get(name, 1), features=store)
    metric = MONITORED[name]
    baseline = BASELINES[name](model, train, val, long)
    return {
        "bits": "equal" if same else "differ",
        "metric": metric,
        "frostline": long.best.validation[metric],
        "baseline": baseline[metric],
        "frostline_all": long.best.validation.headline(),
        "baseline_all": baseline.headline(),
        "plain_epoch": sorted(r.seconds for r in plain.history)[len(plain.history) // 2],
        "stored_epoch": sorted(r.seconds for r in long.history)[len(long.history) // 2],
    }


@torch.no_grad()
def pooled(model: nn.Module, data: ImageDataset) -> np.ndarray[Any, Any]:
    """What the last layer is given, `(samples, features)`."""
    model.eval()
    own: Any = getattr(model, "backbone", None)
    features = own or (lambda images: model.features(images).mean(dim=(2, 3)))  # type: ignore[operator]
    rows = []
    for at in range(0, len(data), 32):
        images = torch.stack([data[n][0] for n in range(at, min(at + 32, len(data)))])
        rows.append(features(images))
    return torch.cat(rows).numpy()


def ridge(model: nn.Module, train: ImageDataset, val: ImageDataset, run: fl.Run) -> Metrics:
    del run
    targets = [np.asarray(data.targets) for data in (train, val)]
    fitted = RidgeCV(np.logspace(-3, 4, 15)).fit(pooled(model, train), targets[0])
    predicted = torch.tensor(fitted.predict(pooled(model, val)))
    return fl.Regression(3, scale="none").summarise(predicted, torch.tensor(targets[1]))


def logistic(model: nn.Module, train: ImageDataset, val: ImageDataset, run: fl.Run) -> Metrics:
    del run
    inputs, others = pooled(model, train), pooled(model, val)
    columns = []
    for labels in np.asarray(train.targets).T:
        fitted = LogisticRegressionCV(
            Cs=(1e-3, 1e-2, 1e-1),
            cv=3,
            scoring="neg_log_loss",
            max_iter=500,
            l1_ratios=(0,),
            use_legacy_attributes=False,
        ).fit(inputs, labels)
        columns.append(torch.tensor(fitted.decision_function(others)))
    logits = torch.stack(columns, dim=1)
    return fl.MultiLabel(LABELS).summarise(logits, torch.tensor(np.asarray(val.targets)))


@torch.no_grad()
def pixelwise(model: nn.Module, train: ImageDataset, val: ImageDataset, run: fl.Run) -> Metrics:
    """Logistic regression of interpolated features: the family that the decoder is of."""
    task, draw = run.task, np.random.default_rng(0)
    model.eval()
    inputs, wanted, each = [], [], PIXELS // len(train)
    for at in range(len(train)):
        image, mask = train[at]
        found = model.backbone(image.unsqueeze(0))  # type: ignore[operator]
        whole = nn.functional.interpolate(found, mask.shape, mode="bilinear")[0].flatten(1)
        places = draw.choice(mask.numel(), each, replace=False)
        inputs.append(whole[:, places].T.numpy())
        wanted.append(mask.flatten()[places].numpy())
    fitted = LogisticRegression(max_iter=300).fit(np.concatenate(inputs), np.concatenate(wanted))
    layer = copy.deepcopy(model.classifier)
    layer.weight.copy_(torch.tensor(fitted.coef_)[:, :, None, None])  # type: ignore[operator,union-attr]
    layer.bias.copy_(torch.tensor(fitted.intercept_))  # type: ignore[operator,union-attr]
    kept = []
    for at in range(len(val)):
        image, mask = val[at]
        kept.append(task.kept(layer(model.backbone(image.unsqueeze(0))), mask.unsqueeze(0)))  # type: ignore[operator]
    return task.summarise(*(torch.cat(part) for part in zip(*kept, strict=True)))


BASELINES: dict[str, Callable[..., Metrics]] = {
    "regression": ridge,
    "multilabel": logistic,
    "segmentation": pixelwise,
}


def against_torchmetrics() -> dict[str, float]:
    """Seconds of its import, and of the same metrics of 1,000 x 20 labels."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import (
            multilabel_average_precision,
            multilabel_exact_match,
            multilabel_f1_score,
        )
    imported = time.perf_counter() - start
    scores = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    truth = (scores + torch.randn(1000, 20) > 0).long()
    task = fl.MultiLabel(20)

    def theirs() -> None:
        chances = scores.sigmoid()
        multilabel_average_precision(chances, truth, 20)
        multilabel_f1_score(chances, truth, 20, average="macro")
        multilabel_f1_score(chances, truth, 20, average="micro")
        multilabel_exact_match(chances, truth, 20)

    each = {
        "own_seconds": lambda: task.summarise(scores, truth.float()),
        "torchmetrics_seconds": theirs,
    }
    found = {name: sorted(seconds(work) for _ in range(9))[4] for name, work in each.items()}
    return {"import_seconds": imported, **found}


if __name__ == "__main__":
    main()
