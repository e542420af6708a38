"""A Lightning module trained by a plan: the head first, then one stage more; each phase is proved.

    python examples/08_lightning.py

All but the lines between the marks is Lightning as anyone writes it. Nothing is downloaded: a small
network stands in for a pretrained one.
"""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.lightning import Freeze


class Squares(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 2)),
        )

    def training_step(self, batch, _):
        pictures, targets = batch
        return nn.functional.cross_entropy(self.model(pictures), targets)

    def validation_step(self, batch, _):
        pictures, targets = batch
        hits = self.model(pictures).argmax(dim=1) == targets
        self.log("val_accuracy", hits.float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main():
    torch.manual_seed(0)
    train = DataLoader(squares(200, seed=1), batch_size=25, shuffle=True)
    val = DataLoader(squares(50, seed=2), batch_size=25)
    # What a freeze asks for: a plan, and a callback that keeps it.
    head = fl.Phase(name="head", train="2", epochs=3)
    stage = fl.Phase(name="last stage", train="1 | 2", epochs=2, lr=1e-3)
    freeze = Freeze(fl.Plan([head, stage]), module="model")
    # And back to Lightning.
    trainer = pl.Trainer(max_epochs=-1, callbacks=[freeze], logger=False, accelerator="cpu")
    trainer.fit(Squares(), train, val)
    for end in freeze.ends:
        print(end)


def squares(count, *, seed):
    """Noise, with a bright square in every second picture."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 3, 32, 32, generator=generator)
    targets = torch.arange(count) % 2
    pictures[targets == 1, :, 8:24, 8:24] += 1.0
    return TensorDataset(pictures, targets)


if __name__ == "__main__":
    main()
