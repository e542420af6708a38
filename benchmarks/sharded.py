"""Does a model that fits no process extract and train, and what does each process hold at most?

A vision transformer of 400 MB in two processes that may each hold 250 MB of it, beside one that
holds all. It is built without data, sharded part by part, and filled from a file a tensor at a
time; its last block and head are trained on stored features, by SGD, on the same batches. Measured
is the memory that a process has of its own (`RssAnon`) above what it had once it had done the same
with a small model: weights, what is gathered of them, activations, records, optimizer. Freed memory
is given back at once (`MALLOC_MMAP_THRESHOLD_`), so that what is measured is what is held.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared import options, report, table
from torch import Tensor, nn

import frostline as fl
from frostline.deltas import put_tensors
from frostline.world import ALONE, world_here

MB = 1e6
BUDGET_MB = 250
SAMPLES, BATCH, STEPS = 16, 8, 4


class Noise(fl.Samples):
    """Pictures of noise."""

    def __init__(self) -> None:
        self.targets = torch.arange(SAMPLES) % 3

    def __len__(self) -> int:
        return SAMPLES

    def load(self, row: int) -> Tensor:
        return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(row))


def network(layers: int, width: int = 384) -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=64,
        patch_size=16,
        num_layers=layers,
        num_heads=8,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=3,
    )


def sharded(file: Path, layers: int, width: int = 384) -> nn.Module:
    """Filled a tensor at a time: no process ever has all of it."""
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        model = network(layers, width)
    for block in model.encoder.layers:
        for part in (block.self_attention, block.mlp[0], block.mlp[3]):
            fully_shard(part)
    fully_shard(model)
    model.to_empty(device="cpu")
    with safe_open(file, "pt") as content:
        for name in content.keys():  # noqa: SIM118 - no mapping
            put_tensors(model, {name: content.get_tensor(name)})
    return model


def plain(file: Path, layers: int, width: int = 384) -> nn.Module:
    with torch.device("meta"):
        model = network(layers, width)
    model.to_empty(device="cpu")
    model.load_state_dict(load_file(file))
    return model


class Memory:
    """The most that this process had of its own, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.before = self.most = _own_bytes()
        self.parts: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, _own_bytes())
            time.sleep(0.002)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        self.most, start = _own_bytes(), time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start
        self.parts[part] = (max(self.most, _own_bytes()) - self.before) / MB


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def trained(model: nn.Module, layers: int, out: Path, memory: Memory, world: Any) -> Memory:
    last = f"heads | encoder.ln | encoder.layers.encoder_layer_{layers - 1}"
    with memory.during("freeze"):
        plan = fl.Plan([fl.Phase(train=last, steps=STEPS)])
        session = fl.Session(
            model,
            plan,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
            world=world,
        )
        session.enter()
    with memory.during("cut and extract"):
        data = session.data(
            Noise(),
            Noise(),
            batch_size=BATCH,
            features=str(out.with_suffix(".features")),
            precision="exact",
        )
        assert data.facts.computed == 2 * SAMPLES or data.facts.computed == SAMPLES, data.says
    with memory.during("train"):
        while not session.phase_end:
            for batch in session.epoch(data.train):
                nn.functional.cross_entropy(data(batch), batch.targets).backward()
                session.optimizer.step()
                session.optimizer.zero_grad()
                session.after_step()
            session.end_epoch()
    with memory.during("prove and save"):
        print(session.leave(), flush=True)
        fl.save_delta(model, out)
    return memory


def one(folder: Path, layers: int, sends: Any) -> None:
    torch.set_num_threads(1)
    warm = plain(folder / "small.safetensors", 2, 16)
    trained(warm, 2, folder / "warm one.safetensors", Memory(), ALONE)
    memory = Memory()
    with memory.during("load"):
        model = plain(folder / "weights.safetensors", layers)
    trained(model, layers, folder / "one.safetensors", memory, ALONE)
    sends.send((memory.parts, memory.seconds))


def part(rank: int, folder: Path, layers: int, sends: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    world = world_here("cpu")
    warm = sharded(folder / "small.safetensors", 2, 16)
    trained(warm, 2, folder / "warm two.safetensors", Memory(), world)
    memory = Memory()
    with memory.during("load"):
        model = sharded(folder / "weights.safetensors", layers)
    trained(model, layers, folder / "two.safetensors", memory, world)
    sends.send((memory.parts, memory.seconds))
    world.barrier()
    dist.destroy_process_group()


def in_processes(work: Any, given: list[tuple[Any, ...]]) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in given]
    processes = [
        context.Process(target=work, args=(*one, sends))
        for one, (_, sends) in zip(given, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    found = [receives.recv() for receives, _ in pipes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    asked = options(__doc__ or "", layers=57)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes that are started
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        content = network(asked.layers).state_dict()
        size = sum(tensor.nbytes for tensor in content.values())
        save_file(content, folder / "weights.safetensors")
        save_file(network(2, 16).state_dict(), folder / "small.safetensors")
        del content
        [(alone, alone_seconds)] = in_processes(one, [(folder, asked.layers)])
        two = in_processes(part, [(rank, folder, asked.layers) for rank in range(2)])
        mine, its = (load_file(folder / f"{which}.safetensors") for which in ("two", "one"))
    away = max(float((mine[name] - its[name]).abs().max()) for name in its)
    moved = max(float(its[name].abs().max()) for name in its)
    held = max(max(parts.values()) for parts, _ in two)
    rows = [("", *alone, "most")]
    for words, parts in (
        ("one process", alone),
        *((f"process {n} of 2", p) for n, (p, _) in enumerate(two)),
    ):
        sizes = [*parts.values(), max(parts.values())]
        rows.append((f"{words}, MB", *(f"{mb:.0f}" for mb in sizes)))
    table(rows)
    print(f"weights {size / MB:.0f} MB; held at most {held:.0f} of {BUDGET_MB} MB a process")
    print(f"deltas differ by at most {away:.1e}, of numbers up to {moved:.2g}")
    result = {
        "weights_mb": size / MB,
        "budget_mb": BUDGET_MB,
        "one_process_mb": alone,
        "two_processes_mb": [parts for parts, _ in two],
        "most_mb": held,
        "ratio": held / max(alone.values()),
        "one_process_seconds": alone_seconds,
        "two_processes_seconds": [seconds for _, seconds in two],
        "delta_difference": away,
        "same_tensors": mine.keys() == its.keys(),
    }
    report(result, asked.json)


if __name__ == "__main__":
    main()
