"""Three epochs of AdamW with weight decay do not move one bit of what is frozen.

Hashed with hashlib over the raw bytes, so that nothing here rests on our own fingerprints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import frostline as fl


class SequenceClassifier(nn.Module):
    """Embedding, two LSTM layers with dropout between, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.embed(tokens))[0][:, -1])
        return out


def tiny_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout=0.3,
        attention_dropout=0.3,
        num_classes=3,
    )


def alexnet() -> nn.Module:
    """With a narrow classifier, whose wide layers are most of the time of a step."""
    with torch.device("meta"):
        model = models.alexnet(num_classes=3)
    model.features.to_empty(device="cpu")
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    for place, (inside, outside) in {1: (9216, 64), 4: (64, 64), 6: (64, 3)}.items():
        model.classifier[place] = nn.Linear(inside, outside)
    return model


def images(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(12, 3, size, size)


@dataclass(frozen=True)
class Job:
    """A model, its samples, what is trained, and what is looked at in the middle."""

    make: Callable[[], nn.Module]
    samples: Callable[[], Tensor]
    train: str
    frozen_part: str


JOBS = {
    "alexnet": Job(alexnet, images(64), "classifier.6", "features"),
    "alexnet, classifier partly frozen": Job(
        alexnet, images(64), "classifier.4 | classifier.6", "features"
    ),
    "resnet18, layer4 and head": Job(
        lambda: models.resnet18(num_classes=3), images(32), "layer4 | fc", "layer3"
    ),
    "resnet18, only the stem": Job(
        lambda: models.resnet18(num_classes=3), images(32), "conv1 | bn1", "layer2"
    ),
    "vit": Job(tiny_vit, images(32), "heads", "encoder"),
    "lstm": Job(SequenceClassifier, lambda: torch.randint(20, (12, 7)), "head", "lstm"),
}


@pytest.fixture(params=JOBS.values(), ids=JOBS.keys())
def job(request: pytest.FixtureRequest) -> Job:
    found: Job = request.param
    return found


def frozen_tensors(model: nn.Module, trained: tuple[str, ...]) -> dict[str, Tensor]:
    """All tensors of modules that own no trained parameter."""
    owners = {name.rpartition(".")[0] for name in trained}
    return {n: t for n, t in model.state_dict().items() if n.rpartition(".")[0] not in owners}


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def outputs_of(part: nn.Module, model: nn.Module, batch: Tensor) -> list[Tensor]:
    """What `part` gives when the whole model runs."""
    caught: list[Tensor] = []
    hook = part.register_forward_hook(
        lambda _module, _inputs, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(batch)
    hook.remove()
    return caught


def test_no_bit_of_the_frozen_part_moves_in_three_epochs(job: Job) -> None:
    model = job.make().train()
    samples, labels = job.samples(), torch.arange(12) % 3
    trained = fl.select(model, job.train).names
    frozen = fl.train_only(model, job.train)
    watched = frozen_tensors(model, trained)
    before = {name: sha256(tensor) for name, tensor in watched.items()}
    start = {name: sha256(p) for name, p in model.named_parameters() if name in trained}
    # Over all parameters, as most people write it: weight decay would reach every one of them.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _epoch in range(3):
        model.train()
        for batch, wanted in zip(samples.split(6), labels.split(6), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
    after = {name: sha256(tensor) for name, tensor in frozen_tensors(model, trained).items()}
    assert after == before
    assert not any(sha256(p) == start[n] for n, p in model.named_parameters() if n in start)
    frozen.verify()


def test_the_frozen_part_gives_the_same_twice_in_the_middle_of_training(job: Job) -> None:
    model = job.make().train()
    fl.train_only(model, job.train)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    samples = job.samples()
    F.cross_entropy(model(samples), torch.arange(12) % 3).backward()
    optimizer.step()
    part = model.train().get_submodule(job.frozen_part)
    one, two = outputs_of(part, model, samples), outputs_of(part, model, samples)
    assert all(map(torch.equal, one, two))
