"""Do steps on stored features run at the rate of a bare loop? 50,000 x 1,000, head 1000-100-2.

    python benchmarks/head_steps.py [--repeats 5] [--json FILE]

The bare loop has its features in memory, gathers each batch and steps fused Adam; Frostline's epoch
reads them from the store, checks the loss, counts what was right and keeps what a run needs.
"""

from __future__ import annotations

import tempfile

import torch
from shared import median, options, report, seconds, threads
from torch import nn
from torch.utils.data import TensorDataset

from frostline.data import make_batches, open_data
from frostline.devices import Compute
from frostline.engine import Hook, Training, train_phases
from frostline.features import FeatureData
from frostline.recipe import Recipe
from frostline.session import Pipeline, Session
from frostline.store import FeatureKey, FeatureStore, ValueSpec
from frostline.tasks import Classification

SAMPLES, WIDTH, BATCH = 50_000, 1_000, 64


def main() -> None:
    chosen = options(__doc__)
    threads()
    features, targets = torch.randn(SAMPLES, WIDTH), torch.randint(0, 2, (SAMPLES,))
    bare_times, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        data = stored(features, targets, folder)
        for _ in range(chosen.repeats):
            bare_times.append(seconds(lambda: bare(head(), features, targets)))
            ours.append(frostline(data, targets))
    rates = {
        "bare": SAMPLES / BATCH / median(bare_times),
        "frostline": SAMPLES / BATCH / median(ours),
    }
    share = rates["frostline"] / rates["bare"]
    for name, rate in rates.items():
        print(f"{name:<10} {rate:8,.0f} steps/s")
    print(f"frostline runs at {share:.2f} of the bare loop's rate")
    report({"steps_per_second": rates, "share": share}, chosen.json)


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 100), nn.ReLU(), nn.Linear(100, 2))


def bare(model: nn.Module, features: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.train()
    for picked in torch.randperm(SAMPLES).split(BATCH):
        loss = nn.functional.cross_entropy(model(features[picked]), targets[picked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Timed(Hook):
    """Seconds of the last epoch's training; the first one also maps the pages."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_epoch(self, training: object) -> None:
        record = training.history[-1]  # type: ignore[attr-defined]  # a Training
        self.seconds = SAMPLES / record.samples_per_second


def frostline(data: FeatureData, targets: torch.Tensor) -> float:
    timed = Timed()
    small = make_batches(
        TensorDataset(torch.zeros(4, WIDTH), targets[:4]), batch_size=4, shuffle=False, seed=0
    )
    model, batches = head(), data.batches(batch_size=BATCH, shuffle=True)
    whole = Pipeline(batches, small, model, torch.device("cpu"))
    session = Session(model, recipe=Recipe(epochs=2, lr=1e-3))
    training = Training(session, Compute("cpu"))
    train_phases(training, lambda _: whole, task=Classification("ab"), hooks=(timed,))
    return timed.seconds


def stored(features: torch.Tensor, targets: torch.Tensor, folder: str) -> FeatureData:
    """The features in a store, as `fl.extract` gives them."""
    ids = open_data(TensorDataset(features, targets)).ids(range(SAMPLES))
    kept = FeatureStore(folder).open(
        FeatureKey({"what": "noise"}), (ValueSpec("features", (WIDTH,), torch.float32),)
    )
    with kept.writer() as writer:
        for start in range(0, SAMPLES, 1000):
            part = slice(start, start + 1000)
            writer.put(ids[part], [features[part]])
    names = tuple(f"sample {number}" for number in range(SAMPLES))
    return FeatureData(
        kept.read(ids), targets, 1, 0, 0.0, "float32", 4 * WIDTH * SAMPLES, 0.0, "", names
    )


if __name__ == "__main__":
    main()
