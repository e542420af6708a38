"""What does a step keep for its backward? Plain PyTorch, torch.compile and `fl.lean`, side by side.

    python benchmarks/memory.py [--models resnet18 ...] [--selections stem ...] [--json FILE]
                                [--compiled none|some|all|only] [--device cuda] [--seconds 12]

For each model and each choice of what is trained of it, batch 16 (pictures of 224 px, texts of 128
words):

- saved: bytes that autograd keeps from the forward of a step for its backward, each storage once.
  Weights, buffers and the batch itself are there anyway and not counted.
- floor: what the mathematics needs of these bytes; the rule stands in `memory_floor.py`.
- peak: the most resident memory in two steps beyond what it was before them, gradients included;
  each side in a process of its own, which has taken a step before. On CUDA: the most allocated.
- time: forward, loss and backward; the sides take turns in one process on the same weights. The
  ratio is that of the lower quartiles, since what disturbs a step only ever makes it longer; the
  median of the rounds' ratios stands beside it in the file.
- gradients: the largest difference from plain PyTorch's, relative to the largest gradient of the
  tensor; "same" is bit for bit.

Trained: full; head; stem (the first layer with weights, the norm behind it frozen); norms (and
biases); second (every second stage); input (all is frozen, the batch wants a gradient); and for
ResNet-50 biases. Freezing is `fl.train_only`'s, so that norms of what is frozen stand still.

torch.compile takes minutes where the rest takes seconds, so `some` are AlexNet and ResNet-18 with
three choices, and `only` times nothing else, but plain PyTorch beside it in the same run; it is
given up after `--compile-seconds`.

The file is written after each cell; a run that is killed keeps what it has. Cells and sides that
are not measured now stay in it as they were. At the end each cell is named where lean keeps more
bytes than PyTorch, or takes more than 1.10 times its time.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from memory_floor import floor_bytes
from memory_models import BUILDERS, SELECTIONS, Subject, subject
from shared import apart, median, report, table
from torch import Tensor, nn

import frostline as fl

Figures = dict[str, Any]

TABLE = [name for name in BUILDERS if name != "vgg11_bn"]
EXTRA = (("resnet50", "biases"), ("vgg11_bn", "stem"))
COMPILED = [(name, what) for name in ("alexnet", "resnet18") for what in ("full", "stem", "norms")]
# MB, the batch counted in; of VGG-11-BN a tenth of what PyTorch keeps in the same run.
LIMITS = {("resnet18", "stem"): 30.0, ("resnet50", "norms"): 715.0, ("resnet50", "biases"): 100.0}
HEADINGS = (
    *("model", "trained", "plain MB", "floor", "lean", "ratio"),
    *("peak MB", "lean", "ratio", "plain s", "lean ratio", "gradients"),
)
BUILT_HERE = ("memory_models", "memory_floor", "shared")
MOST_TIME = 1.10
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
CELL_SECONDS = 900


def main() -> None:
    chosen = _options()
    result: Figures = {"batch": 16, "device": chosen.device, "cells": {}}
    if chosen.json and chosen.json.exists():
        result["cells"] = json.loads(chosen.json.read_text())["cells"]
    rows = [HEADINGS]
    for name, what in _cells(chosen):
        cell = _cell(name, what, chosen, known=result["cells"].get(f"{name} {what}", {}))
        result["cells"][f"{name} {what}"] = cell
        rows.append(_row(name, what, cell))
        print("  ".join(rows[-1]), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    table(rows)
    result["broken"] = list(_broken(result["cells"]))
    print("\n".join(result["broken"]) or "no cell over its limit")
    report(result, chosen.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--models", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    every = (*SELECTIONS, "biases")
    parser.add_argument("--selections", nargs="+", choices=every, default=list(every))
    parser.add_argument("--compiled", choices=("none", "some", "all", "only"), default="some")
    parser.add_argument("--no-compile", dest="compiled", action="store_const", const="none")
    parser.add_argument("--compile-seconds", type=int, default=240)
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="to time a cell, at least 5 rounds"
    )
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _cells(chosen: argparse.Namespace) -> Iterator[tuple[str, str]]:
    cells = [(name, what) for name in TABLE for what in SELECTIONS] + list(EXTRA)
    for name, what in sorted(cells, key=lambda cell: list(BUILDERS).index(cell[0])):
        if name in chosen.models and what in chosen.selections:
            yield name, what


def _cell(name: str, what: str, chosen: argparse.Namespace, known: Figures) -> Figures:
    """All figures of one cell, what is not measured now as `known`; a part that fails says so."""
    task = (name, what, chosen.device)
    is_eager = chosen.compiled != "only"
    is_compiled = chosen.compiled in ("all", "only") or (
        chosen.compiled == "some" and (name, what) in COMPILED
    )
    cell = {
        key: figure
        for key, figure in known.items()
        if not (is_compiled if "compiled" in key else is_eager)
    }
    if is_eager:
        cell |= _apart(_bytes_and_times, (*task, ["lean"], chosen.seconds), CELL_SECONDS)
        for side in ("plain", "lean"):
            cell |= _apart(_peak, (*task, side), CELL_SECONDS)
    if is_compiled:
        cell |= _compiled(task, chosen)
    return cell


def _compiled(task: tuple[str, str, str], chosen: argparse.Namespace) -> Figures:
    limit = chosen.compile_seconds
    found = _apart(_bytes_and_times, (*task, ["compiled"], chosen.seconds), limit)
    if "compiled_bytes" not in found:
        return {"compiled": "; ".join(str(what) for what in found.values())}
    cell = {key: value for key, value in found.items() if "compiled" in key}
    return cell | _apart(_peak, (*task, "compiled"), limit)


def _apart(work: Callable[..., Figures], arguments: tuple[Any, ...], limit: float) -> Figures:
    return apart(work, arguments, limit, preload=(*BUILT_HERE, "torchvision", "timm"))


def _bytes_and_times(
    name: str, what: str, device: str, others: Sequence[str], seconds: float
) -> Figures:
    """Saved bytes, the floor, the gradients' distance, and times of sides that take turns."""
    plain = subject(name, what, device=device)
    found: Figures = {"batch_bytes": plain.inputs.nbytes, "floor_bytes": floor_bytes(plain)}
    sides: dict[str, nn.Module] = {"plain": plain.model}
    for side in others:
        sides[side] = _as_side(copy.deepcopy(plain.model), side)
    gradients = {}
    for side, model in sides.items():
        _step(plain, model)  # as it is from the second step on, and compiled
        torch.manual_seed(1)
        found[f"{side}_bytes"] = _saved_bytes(plain, model)
        torch.manual_seed(1)
        gradients[side] = _gradients(plain, model)
    for side in others:
        distances = zip(gradients[side], gradients["plain"], strict=True)
        found[f"{side}_gradients"] = max((_distance(a, b) for a, b in distances), default=0.0)
    return found | _times(plain, sides, seconds)


def _as_side(model: nn.Module, side: str) -> nn.Module:
    if side == "lean":
        fl.lean(model)
    if side == "compiled":
        return torch.compile(model)  # type: ignore[return-value]
    return model


def _times(one: Subject, sides: dict[str, nn.Module], seconds: float) -> Figures:
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() < end):
        order = list(sides) if len(rounds) % 2 else list(sides)[::-1]
        rounds.append({side: _step(one, sides[side]) for side in order})
    found: Figures = {f"{side}_seconds": median([r[side] for r in rounds]) for side in sides}
    for side in sides:
        quartiles = [quantiles([r[s] for r in rounds])[0] for s in (side, "plain")]
        found[f"{side}_time_ratio"] = quartiles[0] / quartiles[1]
        found[f"{side}_median_ratio"] = median([r[side] / r["plain"] for r in rounds])
    return found | {"rounds": len(rounds)}


def _step(one: Subject, model: nn.Module) -> float:
    """Seconds of forward, loss and backward."""
    _clear(one, model)
    _wait(one)
    start = time.perf_counter()
    one.loss(model).backward()
    _wait(one)
    return time.perf_counter() - start


def _clear(one: Subject, model: nn.Module) -> None:
    for tensor in (one.inputs, *model.parameters()):
        tensor.grad = None


def _wait(one: Subject) -> None:
    if one.inputs.is_cuda:
        torch.cuda.synchronize()


def _gradients(one: Subject, model: nn.Module) -> list[Tensor]:
    _step(one, model)
    tensors = (one.inputs, *model.parameters())
    return [t.grad.detach().clone() for t in tensors if t.grad is not None]


def _distance(tensor: Tensor, other: Tensor) -> float:
    if torch.equal(tensor, other):
        return 0.0
    return float((tensor - other).abs().max() / other.abs().max())


def _saved_bytes(one: Subject, model: nn.Module) -> int:
    """Bytes of the storages that autograd keeps for the backward of one step.

    Told when the forward is over, since lean makes bits of some once nobody else has them.
    """
    _clear(one, model)
    given = (*model.parameters(), *model.buffers(), one.inputs, one.targets)
    owned = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = one.loss(model)
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in kept)}
    del loss
    return sum(size for pointer, size in storages.items() if pointer not in owned)


def _peak(name: str, what: str, device: str, side: str) -> Figures:
    """The most memory in two steps beyond what it was before them, once the model has run."""
    one = subject(name, what, device=device)
    model = _as_side(one.model, side)
    _step(one, model)
    _clear(one, model)
    if one.inputs.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _trimmed()
    for _ in range(2):
        _step(one, model)
    after = torch.cuda.max_memory_allocated() if one.inputs.is_cuda else _resident("VmHWM")
    return {f"{side}_peak_bytes": after - before}


def _trimmed() -> int:
    """Resident bytes, the allocator's leavings given back and the high-water mark drawn anew."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(what))
    return 1024 * int(line.split()[1])


def _row(name: str, what: str, cell: Figures) -> tuple[str, ...]:
    def size(key: str) -> str:
        return f"{cell[key] / 1e6:,.1f}" if key in cell else "-"

    def ratio(key: str, other: str) -> str:
        return f"{cell[key] / cell[other]:.2f}" if cell.get(other) and key in cell else "-"

    far = cell.get("lean_gradients")
    return (
        name,
        what,
        *(size(f"{side}_bytes") for side in ("plain", "floor", "lean")),
        ratio("lean_bytes", "plain_bytes"),
        *(size(f"{side}_peak_bytes") for side in ("plain", "lean")),
        ratio("lean_peak_bytes", "plain_peak_bytes"),
        f"{cell['plain_seconds']:.3f}" if "plain_seconds" in cell else "-",
        f"{cell['lean_time_ratio']:.2f}" if "lean_time_ratio" in cell else "-",
        "-" if far is None else "same" if far == 0 else f"{far:.0e}",
    )


def _broken(cells: dict[str, Figures]) -> Iterator[str]:
    """Each cell that is over its limit, in a line."""
    for title, cell in cells.items():
        yield from (f"{title}: {key}: {cell[key]}" for key in cell if key.startswith("error"))
        if "lean_bytes" not in cell:
            continue
        plain, lean = cell["plain_bytes"], cell["lean_bytes"]
        name, what = title.split()
        limit = LIMITS.get((name, what), plain / 1e7 if name == "vgg11_bn" else None)
        if lean > plain:
            yield f"{title}: lean keeps {lean / plain:.3f} times PyTorch's bytes"
        if cell["lean_time_ratio"] > MOST_TIME:
            yield f"{title}: lean takes {cell['lean_time_ratio']:.2f} times PyTorch's time"
        if limit is not None and (with_batch := (lean + cell["batch_bytes"]) / 1e6) > limit:
            yield f"{title}: {with_batch:.1f} MB with the batch, to be at most {limit:.1f}"


if __name__ == "__main__":
    main()
