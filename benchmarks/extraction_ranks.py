"""What do several processes gain where one store is filled, and what does a kill cost it?

    python benchmarks/extraction_ranks.py [--samples 50000] [--processes 2] [--kills 20]
        [--kill-samples 2000] [--network squeezenet1_1] [--repeats 3] [--json FILE]

CIFAR-10 at 64 px through a frozen network with a new head, into an empty store, started as
`torchrun` does by torch's own agent; seconds are of `fl.extract` alone, from when all processes
are ready until all have all rows. Each process has one torch thread. Twice: as they are, where one
process decodes pictures in other threads than it computes in; and `one_core`, where each process
has one core for all its threads.

Then `--kills` times one of three processes is killed at a moment of the extraction, drawn at
random, and the agent starts all three again: the features of the last are compared with those of
an undisturbed extraction, bit for bit, and rows in the store are counted.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tarfile
import tempfile
import threading
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from cifar10 import PIXELS, dataset, every
from shared import DATA, median, options, report
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import frostline as fl
from frostline.data import inputs_of, open_data
from frostline.models import load_model
from frostline.world import gathered, is_restarted, world_here

WEIGHTS = {
    "squeezenet1_1": DATA / "weights" / "squeezenet1_1.pth",
    "mobilenet_v2": DATA / "weights" / "mobilenet_v2.features.safetensors",
}
KILLED_OF = 3


def main() -> None:
    multiprocessing.set_forkserver_preload(["torch", "torchvision.models", "frostline", "cifar10"])
    chosen = options(
        __doc__,
        samples=50_000,
        processes=2,
        kills=20,
        kill_samples=2000,
        network=next(iter(WEIGHTS)),
    )
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(DATA / "cifar10.tar.xz") as archive:
            archive.extractall(scratch, filter="data")
        root = next(path.parent for path in Path(scratch).rglob("train") if path.is_dir())
        work = partial(extract, root / "train", chosen.network, folder=Path(scratch))
        result: dict[str, Any] = {"samples": chosen.samples, "pixels": PIXELS}
        result |= {"network": chosen.network, "processes": chosen.processes}
        for name, one_core in (("", False), ("one_core_", True)) if chosen.repeats else ():
            timed = partial(work, samples=chosen.samples, one_core=one_core)
            result |= compare(timed, chosen.processes, chosen.repeats, name)
        if chosen.kills:
            result |= kills(partial(work, samples=chosen.kill_samples), chosen.kills)
    for name, value in result.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    report(result, chosen.json)


def compare(timed: Any, processes: int, repeats: int, name: str) -> dict[str, Any]:
    """Both sides in turn; the rows must be the same."""
    alone, shared = [], []
    for turn in range(repeats):
        alone.append(started(timed, 1, store=f"{name}alone{turn}"))
        shared.append(started(timed, processes, store=f"{name}shared{turn}"))
    assert len({one["digest"] for one in (*alone, *shared)}) == 1, "other bits"
    assert all(sum(one["computed_by"]) == one["rows"] for one in shared), "rows computed twice"
    seconds = [median([one["seconds"] for one in side]) for side in (alone, shared)]
    return {
        f"{name}one_process_seconds": seconds[0],
        f"{name}processes_seconds": seconds[1],
        f"{name}ratio": seconds[1] / seconds[0],
        f"{name}ratios": [b["seconds"] / a["seconds"] for a, b in zip(alone, shared, strict=True)],
        f"{name}one_process_processor_seconds": [one["processor_seconds"] for one in alone],
        f"{name}processes_processor_seconds": [one["processor_seconds"] for one in shared],
        f"{name}computed_by": [one["computed_by"] for one in shared],
    }


def kills(work: Any, count: int) -> dict[str, Any]:
    draw = random.Random(0)
    undisturbed = started(work, KILLED_OF, store="undisturbed")
    again = list[int]()
    while len(again) < count:
        killed = (draw.randrange(KILLED_OF), draw.uniform(0.0, undisturbed["seconds"]))
        found = started(work, KILLED_OF, store=uuid.uuid4().hex, killed=killed)
        said = f"process {killed[0]} after {killed[1]:.2f} s"
        assert found["digest"] == undisturbed["digest"], f"other bits: {said}"
        if found["was_killed"]:  # else it had ended before
            again.append(found["records"] - found["rows"])
            print(f"killed {said}: same bits, {again[-1]} rows twice", flush=True)
    return {"kills": count, "rows_stored_twice": sum(again), "kill_rows": undisturbed["rows"]}


def started(work: Any, processes: int, *, store: str, **named: Any) -> dict[str, Any]:
    """What the first of so many processes gives, as torch's agent starts them, and again."""
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=3,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    found: dict[int, Any] = elastic_launch(settings, done)(partial(work, store=store, **named))
    return found[0]


def done(work: Any) -> Any:
    return work()  # the agent wants a function with a name


def extract(
    root: Path,
    network: str,
    *,
    folder: Path,
    store: str,
    samples: int,
    one_core: bool = False,
    killed: tuple[int, float] | None = None,
) -> dict[str, Any]:
    """One process's part."""
    world = world_here("cpu")
    torch.set_num_threads(1)
    if one_core:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[world.rank % len(cores)]})
    data = dataset(root)
    data = every(data, max(1, len(data) // samples))
    loaded = load_model(network, weights=str(WEIGHTS[network]), classes=10)
    fl.train_only(loaded.model, loaded.head)
    cut = fl.cut(loaded.model, inputs_of(open_data(data), range(4)))
    world.barrier()
    if killed and world.rank == killed[0] and not is_restarted():
        threading.Thread(target=kill, args=(killed[1], folder / store), daemon=True).start()
    start, own = time.perf_counter(), time.process_time()
    found = fl.extract(cut, data, folder / store, batch_size=64)
    own = time.process_time() - own
    world.barrier()
    seconds = time.perf_counter() - start
    processor = gathered(world, torch.tensor([own])).tolist()
    found_there = what_is_there(found, folder / store)
    return {**found_there, "seconds": seconds, "processor_seconds": processor}


def kill(after: float, store: Path) -> None:
    time.sleep(after)
    store.mkdir(exist_ok=True)
    (store / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def what_is_there(found: Any, store: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    for rows in torch.arange(len(found)).split(1000):
        for value in found.values(rows):
            digest.update(value.contiguous().view(torch.uint8).numpy().data)
    (entry,) = fl.FeatureStore(store).ls()
    record = 16 + 16 + 8 * (len(entry.values) - 1)
    logs = sum(path.stat().st_size for path in entry.path.glob("segment-*/rows"))
    return {
        "digest": digest.hexdigest(),
        "computed_by": list(found.computed_by),
        "rows": len(found),
        "records": logs // record,
        "was_killed": (store / "killed").exists(),
    }


if __name__ == "__main__":
    main()
