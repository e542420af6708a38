"""Does `fl.estimate` say what a step then takes? Eight models, four selections, batch 16.

    python benchmarks/estimate.py [--models resnet18 ...] [--json FILE] [--repeats 3] [--rounds 3]

A cell is a few rounds, each a process of its own, as a user's is: first the estimate (operations
timed alone and scaled by real steps, in about six seconds), then real steps of forward, loss,
backward and AdamW, of which the median counts. All ratios are estimated to measured: bytes that
autograd keeps, bytes of gradients and of the optimizer's state, seconds of a step. Of the rounds'
ratios the median counts; how far apart they were stands beside it, and how far apart the real
steps were: a step of a fifth of a second may take 1.5 times as long a minute later. Weights are
random; a step's cost does not depend on them.

Asked: saved bytes within 5 %, gradients and state exact, seconds within 25 %. At the end the cells
outside of that are named, and counted in how many single rounds the seconds were within.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
FIGURES = ("saved", "gradients", "state", "seconds")
HEADINGS = ("model", "trained", *FIGURES, "of rounds", "measured s", "apart")


def cell(name: str, trained: str, repeats: int) -> dict[str, Any]:
    """One round of one model with one selection, in this process."""
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    pictures = torch.randn(BATCH, 3, PIXELS, PIXELS)
    fl.train_only(model, trained)
    step = fl.estimate(model, pictures[:2], batch_size=BATCH).step
    real = measure_step(model, pictures, repeats=repeats)
    return {
        "saved": step.memory.saved / real.saved_bytes,
        "gradients": step.memory.gradients / real.gradient_bytes,
        "state": step.memory.state / real.state_bytes,
        "seconds": step.seconds / real.seconds,
        "measured_seconds": real.seconds,
        "measured_saved_bytes": real.saved_bytes,
    }


def in_all(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds, and the seconds of each."""
    return {
        **{figure: median([one[figure] for one in rounds]) for figure in rounds[0]},
        "rounds": [{key: one[key] for key in ("seconds", "measured_seconds")} for one in rounds],
    }


def is_met(row: dict[str, Any]) -> dict[str, bool]:
    return {
        "saved": abs(row["saved"] - 1) <= 0.05,
        "gradients": row["gradients"] == 1,
        "state": row["state"] == 1,
        "seconds": is_near(row),
    }


def is_near(row: dict[str, Any]) -> bool:
    return abs(row["seconds"] - 1) <= 0.25


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    single = [one["seconds"] for one in row["rounds"]]
    real = [one["measured_seconds"] for one in row["rounds"]]
    return (
        *(row["model"], row["trained"]),
        *(f"{row[figure]:.3f}" for figure in FIGURES),
        f"{min(single):.2f} to {max(single):.2f}",
        f"{row['measured_seconds']:.3f}",
        f"{max(real) / min(real):.2f}",
    )


def main() -> None:
    asked = options(__doc__, models=MODELS, rounds=3)
    rows = []
    for name in asked.models:
        for trained in SELECTIONS:
            rounds = []
            for _ in range(asked.rounds):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                    rounds.append(alone.submit(cell, name, trained, asked.repeats).result())
            rows.append({"model": name, "trained": trained, **in_all(rounds)})
            print(*shown(rows[-1]), flush=True)
    table([HEADINGS, *map(shown, rows)])
    for figure in FIGURES:
        missed = [f"{row['model']} {row['trained']}" for row in rows if not is_met(row)[figure]]
        print(f"{figure}: {len(rows) - len(missed)} of {len(rows)} as asked", *missed, sep="; ")
    single = [one for row in rows for one in row["rounds"]]
    print(f"seconds of single rounds: {sum(map(is_near, single))} of {len(single)} as asked")
    print(f"median ratio of seconds: {median([row['seconds'] for row in rows]):.2f}")
    report({"batch": BATCH, "pixels": PIXELS, "cells": rows}, asked.json)


if __name__ == "__main__":
    main()
