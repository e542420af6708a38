"""From what size on is an operation worth a rule of `fl.lean`? Plain and leaned, size by size.

    python benchmarks/lean_threshold.py [--json FILE] [--repeats 15]

Eight frozen blocks behind a trainable 1 x 1 convolution, on values of so many bytes; a block is a
convolution, a norm, a ReLU, a ReLU6 and a dropout, each of which has a rule. `ratio` is leaned to
plain, of a forward and a backward, the median of rounds in which both take turns; `kept` is what
the leaned one keeps of the bytes that the plain one keeps. `at_least_bytes` is 0 here: from where
the ratio stays within 1.10 a rule is worth its time.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from shared import median, options, report, table, threads
from torch import Tensor, nn

import frostline as fl
from frostline.backward import saved_bytes
from frostline.backward.tensors import Settings

CHANNELS = 16
SIDES = (4, 8, 16, 24, 32, 48, 64, 128, 256)
HEADINGS = ("bytes", "plain ms", "ratio", "kept")


def blocks() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(CHANNELS, CHANNELS, 1)]
    for _ in range(8):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)]
        layers += [nn.ReLU(), nn.ReLU6(), nn.Dropout(0.1)]
    model = nn.Sequential(*layers)
    fl.train_only(model, "0")
    for module in model[1:]:
        module.train(isinstance(module, nn.Dropout))
    return model


def seconds(model: nn.Module, inputs: Tensor, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        model(inputs).sum().backward()
    return (time.perf_counter() - start) / steps


def size(side: int, repeats: int) -> dict[str, Any]:
    """Both at one size."""
    torch.manual_seed(0)
    plain = blocks()
    leaned = copy.deepcopy(plain)
    fl.lean(leaned, at_least_bytes=0)
    inputs = torch.randn(1, CHANNELS, side, side)
    kept = [
        saved_bytes(lambda m=m: m(inputs).sum(), besides=(*m.parameters(), *m.buffers(), inputs))
        for m in (plain, leaned)
    ]
    steps = max(1, int(0.02 / seconds(plain, inputs, 2)))
    seconds(leaned, inputs, 2)
    rounds = [
        (seconds(plain, inputs, steps), seconds(leaned, inputs, steps)) for _ in range(repeats)
    ]
    return {
        "nbytes": inputs.nbytes,
        "plain_seconds": median([plain for plain, _ in rounds]),
        "ratio": median([leaned / plain for plain, leaned in rounds]),
        "kept": kept[1] / kept[0],
    }


def main() -> None:
    asked = options(__doc__)
    threads()
    sizes = [size(side, max(asked.repeats, 15)) for side in SIDES]
    table(
        [
            HEADINGS,
            *(
                (
                    f"{found['nbytes']:,}",
                    f"{1000 * found['plain_seconds']:.2f}",
                    f"{found['ratio']:.2f}",
                    f"{found['kept']:.2f}",
                )
                for found in sizes
            ),
        ]
    )
    report({"sizes": sizes, "at_least_bytes": Settings().at_least_bytes}, asked.json)


if __name__ == "__main__":
    main()
