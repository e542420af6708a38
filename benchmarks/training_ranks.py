"""Do several processes train to the losses of one, how fast, and what does a kill change?

    python benchmarks/training_ranks.py [--parts losses times kills] [--samples 1000]
        [--processes 2] [--most-processes 3] [--kills 20] [--kill-samples 300] [--repeats 3]
        [--json FILE]

MobileNetV2 on CIFAR-10 at 64 px, batches of 32, in three ways: a head alone, the top stage with its
batch norms (with `sync_norm`, and each process with its own), and a plan of three phases. Started
as `torchrun` does by torch's own agent; each process has one torch thread. Losses of all epochs are
compared with those of one process; two runs of the same kind must end at the same bits. Seconds are
of the epochs' training, of the top stage with features off.

Then `--kills` times one of three processes is killed at a moment of the plan, drawn at random, and
the agent starts all three again: the weights must be those of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import multiprocessing
import random
import tarfile
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from cifar10 import PIXELS, dataset, every
from extraction_ranks import KILLED_OF, WEIGHTS, kill, started
from shared import DATA, median, options, report

import frostline as fl
from frostline.callbacks import saving
from frostline.models import load_model
from frostline.world import gathered_names, is_restarted, world_here

NETWORK = "mobilenet_v2"
PLAN = fl.Plan(
    [
        fl.Phase(train="stage:-1", epochs=1, lr=3e-3),
        fl.Phase(train="stage:-2..-1", epochs=2, lr=3e-4, start="best"),
        fl.Phase(train="stage:-1", steps=5, lr=1e-3),
    ]
)
WAYS: dict[str, dict[str, Any]] = {
    "head": {"train": "stage:-1"},
    "top_synced": {"train": "stage:-2..-1", "sync_norm": True},
    "top": {"train": "stage:-2..-1"},
    "plan_synced": {"plan": PLAN, "sync_norm": True},
}


def main() -> None:
    multiprocessing.set_forkserver_preload(["torch", "torchvision.models", "frostline", "cifar10"])
    chosen = options(
        __doc__,
        samples=1000,
        processes=2,
        most_processes=3,
        kills=20,
        kill_samples=300,
        parts=("losses", "times", "kills"),
    )
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(DATA / "cifar10.tar.xz") as archive:
            archive.extractall(scratch, filter="data")
        root = next(path.parent for path in Path(scratch).rglob("train") if path.is_dir())
        work = partial(fit, root / "train", folder=Path(scratch))
        result: dict[str, Any] = {"samples": chosen.samples, "pixels": PIXELS, "network": NETWORK}
        sizes = sorted({chosen.processes, chosen.most_processes})
        for way in WAYS if "losses" in chosen.parts else ():
            result |= compared(partial(work, samples=chosen.samples, way=way), way, sizes)
        if "times" in chosen.parts:
            timed = partial(work, samples=chosen.samples, way="top", features="off")
            result |= times(timed, chosen.processes, chosen.repeats)
        if "kills" in chosen.parts:
            killed = partial(work, samples=chosen.kill_samples, way="plan_synced")
            result |= kills(killed, chosen.kills)
    for name, value in result.items():
        print(f"{name:36} {value:.4g}" if isinstance(value, float) else f"{name:36} {value}")
    report(result, chosen.json)


def compared(work: Any, way: str, sizes: list[int]) -> dict[str, Any]:
    """The largest relative difference of a loss, training or validation, from one process's."""
    alone, found = started(work, 1, store=f"{way}-1"), dict[str, Any]()
    for size in sizes:
        one, again = (started(work, size, store=f"{way}-{size}-{turn}") for turn in range(2))
        assert one["digest"] == again["digest"], f"{way} on {size}: other bits when repeated"
        assert len(set(one["digests"])) == 1, f"{way} on {size}: processes ended at other bits"
        pairs = zip(one["losses"], alone["losses"], strict=True)
        off = max(abs(a - b) / abs(b) for a, b in pairs)
        found[f"{way}_on_{size}_relative_difference"] = off
    return found


def times(work: Any, size: int, repeats: int) -> dict[str, Any]:
    alone, shared = [], []
    for turn in range(repeats):
        alone.append(started(work, 1, store=f"timed-1-{turn}")["seconds"])
        shared.append(started(work, size, store=f"timed-{size}-{turn}")["seconds"])
    return {
        "one_process_seconds": median(alone),
        "processes_seconds": median(shared),
        "ratio": median(shared) / median(alone),
    }


def kills(work: Any, count: int) -> dict[str, Any]:
    draw = random.Random(0)
    undisturbed, died = started(work, KILLED_OF, store="undisturbed"), 0
    for turn in range(count):
        killed = (draw.randrange(KILLED_OF), draw.uniform(0.0, undisturbed["whole_seconds"]))
        found = started(work, KILLED_OF, store=f"killed-{turn}", killed=killed)
        assert found["digests"] == undisturbed["digests"], f"other bits after {killed}"
        died += found["was_killed"]
    return {"kills": died, "kill_samples": undisturbed["samples"]}


def fit(
    root: Path,
    *,
    folder: Path,
    store: str,
    samples: int,
    way: str,
    features: str = "",
    killed: tuple[int, float] | None = None,
) -> dict[str, Any]:
    """One process's part."""
    world = world_here("cpu")
    torch.set_num_threads(1)
    saving.SAVE_SECONDS, saving._SHARE_OF_TIME = 0.0, 0
    data = dataset(root)
    data = every(data, max(1, len(data) // samples))
    loaded = load_model(NETWORK, weights=str(WEIGHTS[NETWORK]), classes=10)
    asked = dict(WAYS[way])
    if (train := asked.pop("train", None)) is not None:
        fl.train_only(loaded.model, train)
        asked |= {"epochs": 2, "lr": 3e-4}
    world.barrier()
    if killed and world.rank == killed[0] and not is_restarted():
        marks = folder / "marks" / store
        marks.parent.mkdir(exist_ok=True)
        threading.Thread(target=kill, args=(killed[1], marks), daemon=True).start()
    start = time.perf_counter()
    run = fl.fit(
        loaded.model,
        data,
        every(data, 4),
        out=folder / "runs" / store,
        features=features or folder / "features",
        precision="exact",
        device="cpu",
        world=world,
        **asked,
    )
    whole_seconds = time.perf_counter() - start
    digest = xxhash.xxh3_128()
    for tensor in run.model.state_dict().values():
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return {
        "digest": digest.hexdigest(),
        "digests": list(gathered_names(world, [digest.hexdigest()])),
        "losses": [v for r in run.history for v in (r.train["loss"], r.validation["loss"])],
        "seconds": sum(len(data) / record.samples_per_second for record in run.history),
        "whole_seconds": whole_seconds,
        "samples": len(data),
        "was_killed": (folder / "marks" / store / "killed").exists(),
    }


if __name__ == "__main__":
    main()
