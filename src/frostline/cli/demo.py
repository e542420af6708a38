"""`frostline demo`: the main job on an embedded default, without data, hub or arguments."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from frostline.data import Batches, ImageDataset
    from frostline.engine import Predictions
    from frostline.estimates.measuring import StepCost
    from frostline.preprocessing import Preprocessing
    from frostline.tables import Table

_EPOCHS = 5
_BATCH_SIZE = 16
_HEAD = "_fc"
_PARTS = ("train", "val", "test")


def demo() -> None:
    """Freeze EfficientNet-Lite0's ImageNet weights and teach it handwritten digits.

    Weights and pictures come in packages, so nothing is downloaded. Takes about a minute on two
    cores and leaves nothing behind.
    """
    import frostline as fl
    from frostline.callbacks.progress import BatchBar, EpochTable
    from frostline.cli._digits import SIDE_PIXELS, efficientnet, write_digits
    from frostline.cli._terminal import notes, output, say
    from frostline.engine import predict
    from frostline.tasks import evaluate_logits

    start, page = time.perf_counter(), output()
    with tempfile.TemporaryDirectory(prefix="frostline-demo-") as scratch:
        pictures = Path(scratch) / "digits"
        write_digits(pictures)
        network, preprocessing = efficientnet()
        train, val, test = (_dataset(pictures / part, preprocessing) for part in _PARTS)
        say(page, f"Data     scikit-learn's handwritten digits as {SIDE_PIXELS} px pictures:")
        say(page, f"         {len(train)} train, {len(val)} validate, {len(test)} held out")
        say(page, "Model    EfficientNet-Lite0 with its ImageNet weights, new head for 10 digits")
        put_new_head(network)
        everything = _step_cost(network, train)
        frozen = fl.train_only(network, _HEAD)
        page.print()
        page.print(frozen.summary(depth=1).table())
        page.print()
        bar = BatchBar(notes(), samples_per_batch=_BATCH_SIZE)
        run = fl.fit(
            network,
            train,
            val,
            out=Path(scratch) / "run",
            features=Path(scratch) / "features",
            batch_size=_BATCH_SIZE,
            hooks=(EpochTable(page), bar),
            epochs=_EPOCHS,
            lr=3e-3,
        )
        told = predict(network, _batches(test))
        found = evaluate_logits(told.outputs, told.targets, classes=test.classes)
        page.print()
        page.print(_some_predictions(told))
        page.print()
        say(page, f"Held-out accuracy {found.accuracy:.3f} on {found.samples} pictures")
        say(page, f"Verified: {run.proof}")
        for line in _savings(everything, _step_cost(network, train)):
            say(page, line)
        say(page, f"Done in {time.perf_counter() - start:.0f} s. Next, your own pictures:")
        say(page, "  frostline train FOLDER --model resnet18 --out runs/mine")


def put_new_head(network: nn.Module) -> None:
    """A head for 10 digits, the same each time, so that the demo repeats."""
    import torch

    from frostline.models import replace_classifier

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        replace_classifier(network, classes=10, path=_HEAD)


def _dataset(folder: Path, preprocessing: Preprocessing) -> ImageDataset:
    from frostline.data import ImageDataset, read_set

    return ImageDataset(read_set(folder, classes=[str(n) for n in range(10)]), preprocessing)


def _batches(data: ImageDataset) -> Batches:
    from frostline.data import make_batches

    return make_batches(data, batch_size=_BATCH_SIZE, shuffle=False, seed=0)


def _some_predictions(told: Predictions) -> Table:
    """A few held-out pictures with the digit that was told and the true one."""
    from frostline.tables import Column, Table

    probabilities = told.outputs.double().softmax(dim=1)
    step = max(1, len(told.names) // 6)
    rows = [
        (
            Path(name).name,
            str(int(target)),
            str(int(p.argmax())),
            f"{float(p.max()):.3f}",
        )
        for name, target, p in list(zip(told.names, told.targets, probabilities, strict=True))[
            ::step
        ]
    ]
    columns = ("held-out picture", "true digit", "told", "probability")
    return Table(tuple(Column(heading, "right") for heading in columns), tuple(rows))


def _step_cost(network: nn.Module, data: ImageDataset) -> StepCost:
    from contextlib import closing

    from frostline.estimates.measuring import measure_step

    with closing(_batches(data).epoch(0)) as batches:
        batch = next(batches)
    return measure_step(network, batch.inputs, batch.targets)


def _savings(everything: StepCost, head_only: StepCost) -> Iterator[str]:
    from frostline.units import format_bytes, format_seconds

    yield f"Freezing saved, measured on steps of {_BATCH_SIZE} pictures:"
    before, after = format_seconds(everything.seconds), format_seconds(head_only.seconds)
    yield f"  time                        {before} -> {after}"
    before, after = format_bytes(everything.nbytes), format_bytes(head_only.nbytes)
    yield f"  memory besides the weights  {before} -> {after}"
