"""The job of `loops.py` under Accelerate and in a plain loop over a session: the bits of `fl.fit`?

    python benchmarks/loops_accelerate.py [--epochs 1] [--photos 244] [--json FILE]

*fit* is `fl.fit`; *session* a loop by hand over `fl.Session`; *accelerate* the same loop with the
model, the backward pass and the checkpoints of Accelerate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
from accelerate import Accelerator
from shared import options, report, table, threads
from torch import Tensor, nn

import frostline as fl
from frostline.session import Pipeline
from loops import BATCH, Found, Job, fit, frozen_hash, job, timed


def main() -> None:
    chosen = options(__doc__, epochs=1, photos=244)
    threads()
    given, found = job(chosen.epochs, chosen.photos), {}
    for name, loop in (("fit", fit), ("session", session), ("accelerate", accelerate)):
        found[name] = timed(loop, copy.deepcopy(given))
    rows = [("loop", "seconds", "frozen in phase 1", "frozen in phase 2", "final bits")]
    for name, side in found.items():
        hashes = [text.removeprefix("xxh3:")[:12] for text in (*side.frozen, side.bits)]
        rows.append((name, f"{side.seconds:.1f}", *hashes))
    table(rows)
    same = len({(*side.frozen, side.bits) for side in found.values()}) == 1
    print("the same bits in all" if same else "NOT the same bits")
    sides = {name: asdict(side) for name, side in found.items()}
    settings = {"epochs": chosen.epochs, "photos": len(given.train)}
    report({"settings": settings, "loops": sides, "same_bits": same}, chosen.json)


def session(given: Job) -> Found:
    return trained(given, given.model, Tensor.backward)


def accelerate(given: Job) -> Found:
    accelerator = Accelerator(cpu=True)
    return trained(given, accelerator.prepare(given.model), accelerator.backward)


def trained(given: Job, model: nn.Module, backward: Callable[[Tensor], object]) -> Found:
    recipe = fl.Recipe(
        optimizer="adam", weight_decay=0.0, schedule="constant", warmup=0, precision="exact"
    )
    found, run = Found(), fl.Session(model, given.plan, recipe=recipe)
    while not run.is_over:
        run.enter()
        data = run.data(given.train, given.val, batch_size=BATCH)
        while not run.phase_end:
            for batch in run.epoch(data.train):
                backward(nn.functional.cross_entropy(data(batch), batch.targets))
                run.optimizer.step()
                run.optimizer.zero_grad()
                run.after_step()
            run.end_epoch({"accuracy": accuracy(model, data)})
        run.leave()
        found.frozen.append(frozen_hash(given.model, with_stage=bool(found.frozen)))
    found.bits = str(fl.fingerprint(given.model))
    return found


def accuracy(model: nn.Module, data: Pipeline) -> float:
    model.eval()
    with torch.no_grad():
        hits = [data(b).argmax(dim=1) == b.targets for b in data.validation.epoch(0)]
    return float(torch.cat(hits).float().mean())


if __name__ == "__main__":
    main()
