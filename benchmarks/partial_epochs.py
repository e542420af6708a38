"""What does an epoch cost beside the trainable part alone? ResNet-18 with layer4, on stored maps.

    python benchmarks/partial_epochs.py [--repeats 3] [--json FILE]

The suffix alone steps on feature maps that lie in memory, in the same batches; Frostline reads
them from the store, checks the loss and counts what was right.
"""

from __future__ import annotations

import copy
import tempfile

import torch
from shared import Epochs, median, network, options, photos, report, seconds, threads
from torch import nn

import frostline as fl
from frostline.data import first_batch, open_data
from frostline.features import extract
from frostline.store import FeatureStore

BATCH, EPOCHS = 32, 3


def main() -> None:
    chosen = options(__doc__)
    threads()
    loaded = network("resnet18+layer4")
    train, val = photos(loaded)
    alone: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        cut = fl.cut(loaded.model, first_batch(open_data(train), 4).inputs)
        data = extract(cut, train, FeatureStore(folder))
        features, targets = data.rows.gather(torch.arange(len(data))), data.targets
        for _ in range(chosen.repeats):
            start = copy.deepcopy(loaded.model.state_dict())
            alone.append(median(suffix_alone(cut.suffix, features, targets)))
            loaded.model.load_state_dict(start)
            epochs = Epochs(len(train))
            fl.fit(
                loaded.model,
                train,
                val,
                features=folder,
                epochs=EPOCHS,
                batch_size=BATCH,
                lr=1e-4,
                hooks=(epochs,),
            )
            ours.append(median(epochs.seconds))
    ratio = median(ours) / median(alone)
    print(f"suffix alone  {median(alone):.3f} s an epoch")
    print(f"frostline     {median(ours):.3f} s an epoch, {ratio:.2f} times")
    report({"suffix_alone": median(alone), "frostline": median(ours), "ratio": ratio}, chosen.json)


def suffix_alone(
    suffix: nn.Module, features: tuple[torch.Tensor, ...], targets: torch.Tensor
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

    return [seconds(epoch) for _ in range(EPOCHS)]


if __name__ == "__main__":
    main()
