"""What does an epoch cost beside the trainable part alone, and beside a plain loop's?

    python benchmarks/partial_epochs.py [--network resnet18+layer4] [--photos 0] [--epochs 3]
        [--repeats 3] [--precision auto] [--json FILE]

The network with its last stage trainable, on stored maps. The suffix alone steps on feature maps
that lie in memory, in the same batches; Frostline reads them from the store, checks the loss and
counts what was right. The plain loop is that of `hymenoptera.py`, one epoch with its validation;
beside it stands Frostline's epoch with its own, from the second one on. `--network vit` is ViT-B/16
with its last two blocks; `--precision bf16` computes what is trained in mixed precision, `exact`
leaves out no row; `--photos` takes as many to train on.
"""

from __future__ import annotations

import copy
import tempfile
import time

import torch
from hymenoptera import NETWORKS, plain_loop
from shared import Epochs, median, network, options, photos, report, seconds, threads
from torch import nn
from torch.utils.data import Subset

import frostline as fl
from frostline.data import first_batch, open_data
from frostline.engine import Hook, Training
from frostline.features import extract
from frostline.store import FeatureStore

BATCH = 32


class WholeEpochs(Hook):
    """Seconds from the end of each epoch, its validation included, to the end of the next."""

    def __init__(self) -> None:
        self._last = 0.0
        self.seconds: list[float] = []

    def on_epoch(self, training: Training) -> None:
        now = time.perf_counter()
        if len(training.history) > 1:
            self.seconds.append(now - self._last)
        self._last = now


def main() -> None:
    chosen = options(__doc__, network="resnet18+layer4", photos=0, epochs=3, precision="auto")
    threads()
    loaded = network(NETWORKS[-1] if chosen.network == "vit" else chosen.network)
    train, val = photos(loaded)
    if chosen.photos:
        train = Subset(train, range(0, len(train), max(1, len(train) // chosen.photos)))
    sides: dict[str, list[float]] = {"plain_loop": [], "suffix_alone": [], "steps": [], "whole": []}
    with tempfile.TemporaryDirectory() as folder:
        cut = fl.cut(loaded.model, first_batch(open_data(train), 4).inputs)
        data = extract(cut, train, FeatureStore(folder))
        features, targets = data.rows.gather(torch.arange(len(data))), data.targets
        start = copy.deepcopy(loaded.model.state_dict())
        for _ in range(chosen.repeats):
            plain = copy.deepcopy(loaded.model)
            sides["plain_loop"].append(seconds(lambda m=plain: plain_loop(m, train, val, 1)))
            alone = suffix_alone(cut.suffix, features, targets, chosen.epochs)
            sides["suffix_alone"].append(median(alone))
            loaded.model.load_state_dict(start)
            epochs, whole = Epochs(len(train)), WholeEpochs()
            fl.fit(
                loaded.model,
                train,
                val,
                features=folder,
                epochs=chosen.epochs,
                batch_size=BATCH,
                lr=1e-4,
                precision=chosen.precision,
                hooks=(epochs, whole),
            )
            loaded.model.load_state_dict(start)
            sides["steps"].append(median(epochs.seconds))
            sides["whole"].append(median(whole.seconds))
    found = {side: median(took) for side, took in sides.items()}
    found["ratio"] = found["steps"] / found["suffix_alone"]
    found["plain_over_whole"] = found["plain_loop"] / found["whole"]
    print({name: round(value, 3) for name, value in found.items()})
    settings = {name: vars(chosen)[name] for name in ("network", "photos", "epochs", "precision")}
    report({"settings": settings, **found}, chosen.json)


def suffix_alone(
    suffix: nn.Module, features: tuple[torch.Tensor, ...], targets: torch.Tensor, epochs: int
) -> list[float]:
    """Seconds of each epoch of bare steps."""
    optimizer = torch.optim.AdamW(
        [p for p in suffix.parameters() if p.requires_grad], lr=1e-4, fused=True
    )
    suffix.train()

    def epoch() -> None:
        for picked in torch.randperm(len(targets)).split(BATCH):
            logits = suffix(*(value[picked] for value in features))
            nn.functional.cross_entropy(logits, targets[picked]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return [seconds(epoch) for _ in range(epochs)]


if __name__ == "__main__":
    main()
