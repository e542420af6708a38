"""A loop of your own over a plan; freezing, optimizer, features and proofs are looked after.

    python examples/04_own_loop.py

Phase one trains the head on features that are computed once; phase two trains one stage more. Two
batches make a step. Nothing is downloaded: a small network stands in for a pretrained one.
"""

import tempfile

import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 2)),
    )
    plan = fl.Plan(
        [
            fl.Phase(name="head", train="2", epochs=3, lr=1e-2),
            fl.Phase(name="last stage", train="1 | 2", epochs=2, lr=1e-3),
        ]
    )
    with tempfile.TemporaryDirectory() as store:
        train(model, plan, squares(200, seed=1), squares(50, seed=2), store)


def train(model, plan, photos, held_out, store):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    session = fl.Session(model, plan, optimizer=optimizer, accumulate=2)
    while not session.is_over:
        session.enter()  # freezes by the phase's selectors, and syncs the optimizer
        folder = store if session.phase.name == "head" else "off"
        data = session.data(photos, held_out, batch_size=25, features=folder)
        while not session.phase_end:
            for batch in session.epoch(data.train):
                loss = criterion(data(batch), batch.targets) / 2
                loss.backward()
                if session.step_is_due:
                    optimizer.step()
                    optimizer.zero_grad()
                    session.after_step()
            session.end_epoch({"accuracy": accuracy(model, data)})
        print(f"{session.phase.name}: {data.facts.computed} features computed")
        print(session.leave())  # the proof of the phase; DriftError names what moved


def accuracy(model, data):
    model.eval()
    with torch.no_grad():
        hits = [data(b).argmax(dim=1) == b.targets for b in data.validation.epoch(0)]
    return torch.cat(hits).float().mean().item()


def squares(count, *, seed):
    """Noise, with a bright square in every second picture."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 3, 32, 32, generator=generator)
    targets = torch.arange(count) % 2
    pictures[targets == 1, :, 8:24, 8:24] += 1.0
    return TensorDataset(pictures, targets)


if __name__ == "__main__":
    main()
