"""What the benchmarks have in common: the machine's name, medians, a table and JSON."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import frostline as fl
from frostline.data import ImageDataset, read_splits
from frostline.engine import Hook, Training
from frostline.models import LoadedModel, load_model
from frostline.tuning import machine

DATA = Path(os.environ.get("FROSTLINE_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Epochs(Hook):
    """Seconds of each epoch's training."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.seconds: list[float] = []

    def on_epoch(self, training: Training) -> None:
        self.seconds.append(self.samples / training.history[-1].samples_per_second)


def options(doc: str, **extra: Any) -> argparse.Namespace:
    """Command line of a benchmark: `--json FILE`, `--repeats N` and what it adds."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many runs")
    for name, default in extra.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(option, nargs="+", choices=default, default=default)
        else:
            parser.add_argument(option, type=type(default), default=default)
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def report(result: dict[str, Any], file: Path | None) -> None:
    """Print the figures, and write them with the machine's name."""
    result["machine"] = machine_name()
    print(result["machine"])
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")


def machine_name() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {machine()}"


def table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def photos(loaded: LoadedModel) -> tuple[ImageDataset, ImageDataset]:
    """hymenoptera: 244 photos to train on, 153 to validate."""
    splits = read_splits(DATA / "hymenoptera")
    return (
        ImageDataset(splits.train, loaded.preprocessing),
        ImageDataset(splits.val, loaded.preprocessing),
    )


def network(name: str) -> LoadedModel:
    """A network of the benchmarks, frozen as its name says."""
    weights = {"mobilenet_v2": str(DATA / "weights" / "mobilenet_v2.features.safetensors")}
    kind, _, part = name.partition("+")
    stacked = kind == "alexnet"
    loaded = load_model(
        kind,
        weights=weights.get(kind, "none"),
        classes=2,
        hidden=(100,) if stacked else (),
        on="logits" if stacked else "classifier",
    )
    fl.train_only(
        loaded.model, " | ".join([loaded.head, *part.split("+")] if part else [loaded.head])
    )
    return loaded


def threads() -> None:
    """As many as there are cores."""
    torch.set_num_threads(os.cpu_count() or 1)


def apart(
    work: Callable[..., dict[str, Any]],
    arguments: Sequence[Any],
    limit_seconds: float,
    *,
    preload: Sequence[str],
) -> dict[str, Any]:
    """What `work` finds in a fresh process that has its imports behind it, `preload`.

    An entry `error in NAME` where it raised, died or was not done in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(its, work, arguments))
    process.start()
    its.close()
    try:
        if not mine.poll(limit_seconds):
            return {f"error in {work.__name__}": f"not done after {limit_seconds:.0f} s"}
        found: dict[str, Any] = mine.recv()
        return found
    except EOFError:
        return {f"error in {work.__name__}": "the process died"}
    finally:
        process.kill()
        process.join()


def _answer(
    connection: Connection, work: Callable[..., dict[str, Any]], arguments: Sequence[Any]
) -> None:
    threads()
    try:
        found = work(*arguments)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        found = {f"error in {work.__name__}": f"{type(error).__name__}: {line}"}
    connection.send(found)
