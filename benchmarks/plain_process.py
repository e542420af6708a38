"""The tutorial's loop as a program of its own: torch and torchvision alone, and a frozen network.

    python benchmarks/plain_process.py FOLDER NETWORK EPOCHS

Prints the seconds of each epoch as a JSON list. Pictures are loaded by two workers, the frozen part
is in eval mode, validation is without gradients.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

BATCH = 32
LOOK = v2.Compose(
    [
        v2.Resize(256),
        v2.CenterCrop(224),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def main(folder: Path, name: str, epochs: int) -> list[float]:
    """Seconds of each epoch."""
    body, head = network(name)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    train = DataLoader(ImageFolder(folder / "train", LOOK), BATCH, shuffle=True, num_workers=2)
    val = DataLoader(ImageFolder(folder / "val", LOOK), BATCH, num_workers=2)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        head.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            loss_of(head(body(inputs)), targets).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            for inputs, targets in val:
                loss_of(head(body(inputs)), targets)
        seconds.append(time.perf_counter() - start)
    return seconds


def network(name: str) -> tuple[nn.Module, nn.Module]:
    """The frozen part, and the head that is trained."""
    if name == "alexnet":  # the head stands on its logits
        body: nn.Module = models.alexnet()
        head: nn.Module = nn.Sequential(nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 2))
    else:
        body = models.resnet18()
        body.fc = nn.Identity()
        head = nn.Linear(512, 2)
    return body.requires_grad_(False).eval(), head


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
