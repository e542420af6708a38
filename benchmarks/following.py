"""What does following a forward take beside torch.export as it comes?

    python benchmarks/following.py [--repeats 7] [--lightning] [--json FILE]

Torchvision's networks with random weights, all frozen, four pictures, one thread. `export` is
`torch.export.export` with a batch of any size, and its module; `ours` is what a cut begins with:
the same, with what nobody there asks for left out, and a record of what the forward reads. Seconds
of the processor, one after the other, ratios pair by pair. `--lightning` imports Lightning before.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from shared import median, options, report, table
from torch import Tensor, nn
from torchvision import models

from frostline.cutting.structures import read_inputs
from frostline.cutting.tracing import trace

SIDES = {
    "alexnet": 224,
    "resnet18": 64,
    "mobilenet_v2": 64,
    "efficientnet_b0": 64,
    "vit_b_16": 224,
}


def main() -> None:
    chosen = options(__doc__, lightning=False)
    if chosen.lightning:
        importlib.import_module("lightning")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, object] = {"lightning": chosen.lightning}
    rows = [("network", "export s", "ours s", "export / ours")]
    for name, side in SIDES.items():
        found = compared(name, torch.randn(4, 3, side, side), chosen.repeats)
        result[name] = found
        rows.append((name, *(f"{value:.2f}" for value in found.values())))
    table(rows)
    report(result, chosen.json)


def compared(name: str, images: Tensor, repeats: int) -> dict[str, float]:
    model = models.get_model(name).eval().requires_grad_(False)
    ways: dict[str, Callable[[], object]] = {
        "export": partial(exported, model, images),
        "ours": partial(trace, model, *read_inputs(images)),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, work in ways.items():
            begun = time.process_time()
            work()
            times[way].append(time.process_time() - begun)
    kept = {way: values[1:] for way, values in times.items()}  # the first ones import
    ratios = [a / b for a, b in zip(kept["export"], kept["ours"], strict=True)]
    return {**{way: median(values) for way, values in kept.items()}, "ratio": median(ratios)}


def exported(model: nn.Module, images: Tensor) -> nn.Module:
    batch = torch.export.Dim.AUTO
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=False)
    return program.module(check_guards=False)


if __name__ == "__main__":
    main()
