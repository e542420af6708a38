"""Does `fl.estimate` say what a step then takes? Eight models, four selections, batch 16.

    python benchmarks/estimate.py [--models resnet18 ...] [--json FILE] [--repeats 3]

Each cell is a process of its own, as a user's is: first the estimate (operations timed alone and
scaled by real steps, in about six seconds), then real steps of forward, loss, backward and AdamW,
of which the median counts. All ratios are estimated to measured: bytes that autograd keeps, bytes
of gradients and of the optimizer's state, seconds of a step. Weights are random; a step's cost does
not depend on them.

Asked: saved bytes within 5 %, gradients and state exact, seconds within 25 %. At the end the cells
outside of that are named.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch
from memory_models import BATCH, PIXELS
from shared import median, options, report, table

import frostline as fl
from frostline.estimates.measuring import measure_step

MODELS = (
    "alexnet",
    "squeezenet1_1",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
)
SELECTIONS = ("all", "stage:-1", "stage:0", "stage:-2..-1")
HEADINGS = ("model", "trained", "saved", "gradients", "state", "seconds", "measured s")


def cell(name: str, trained: str, repeats: int) -> dict[str, Any]:
    """One model with one selection, in this process."""
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    pictures = torch.randn(BATCH, 3, PIXELS, PIXELS)
    fl.train_only(model, trained)
    step = fl.estimate(model, pictures[:2], batch_size=BATCH).step
    real = measure_step(model, pictures, repeats=repeats)
    return {
        "model": name,
        "trained": trained,
        "saved": step.memory.saved / real.saved_bytes,
        "gradients": step.memory.gradients / real.gradient_bytes,
        "state": step.memory.state / real.state_bytes,
        "seconds": step.seconds / real.seconds,
        "measured_seconds": real.seconds,
        "measured_saved_bytes": real.saved_bytes,
    }


def is_met(row: dict[str, Any]) -> dict[str, bool]:
    return {
        "saved": abs(row["saved"] - 1) <= 0.05,
        "gradients": row["gradients"] == 1,
        "state": row["state"] == 1,
        "seconds": abs(row["seconds"] - 1) <= 0.25,
    }


def main() -> None:
    asked = options(__doc__, models=MODELS)
    rows = []
    for name in asked.models:
        for trained in SELECTIONS:
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                rows.append(alone.apply(cell, (name, trained, asked.repeats)))
            print(*(f"{v:.3f}" if isinstance(v, float) else v for v in rows[-1].values()))
    shown = [[*(f"{row[k]:.3f}" for k in HEADINGS[2:-1])] for row in rows]
    table(
        [
            HEADINGS,
            *(
                (row["model"], row["trained"], *ratios, f"{row['measured_seconds']:.3f}")
                for row, ratios in zip(rows, shown, strict=True)
            ),
        ]
    )
    for figure in ("saved", "gradients", "state", "seconds"):
        missed = [f"{row['model']} {row['trained']}" for row in rows if not is_met(row)[figure]]
        print(f"{figure}: {len(rows) - len(missed)} of {len(rows)} as asked", *missed, sep="; ")
    print(f"median ratio of seconds: {median([row['seconds'] for row in rows]):.2f}")
    report({"batch": BATCH, "pixels": PIXELS, "cells": rows}, asked.json)


if __name__ == "__main__":
    main()
