"""How long do 25 epochs on 244 + 153 photos take? Plain loop, floor and Frostline, in one run.

    python benchmarks/hymenoptera.py [--networks alexnet ...] [--repeats 3] [--json FILE]

`plain_loop` is the usual tutorial: DataLoader with 2 workers, the frozen network recomputed in
each epoch (a few epochs are timed, and scaled to 25: all cost the same). `floor` is what a careful
person writes by hand, knowing the fastest form beforehand (float32 or bfloat16, channels-last or
not, tried on one batch that is not counted): decode once in 2 workers, forward once, then bare
steps on tensors. `cold` is `fl.fit` with an empty store, `warm` a second run on the same network
with a new head and another learning rate. All inside one process that has everything imported;
nothing is written but the features.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from shared import median, network, options, photos, report, seconds, table, threads
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.data import ImageDataset

EPOCHS = 25
BATCH = 32
Form = dict[str, Any]  # as `to` takes it
FORMS: tuple[Form, ...] = tuple(
    {"dtype": dtype, "memory_format": layout}
    for dtype in (torch.float32, torch.bfloat16)
    for layout in (torch.contiguous_format, torch.channels_last)
)
NETWORKS = (
    "alexnet",
    "resnet18",
    "mobilenet_v2",
    "efficientnet_b0",
    "timm:vit_small_patch16_224",
    "resnet18+layer4",
    "vit_b_16+encoder.layers.encoder_layer_10+encoder.layers.encoder_layer_11+encoder.ln",
)


def main() -> None:
    chosen = options(__doc__, networks=NETWORKS, epochs=EPOCHS, plain_epochs=2)
    threads()
    rows = [("network", "plain_loop", "floor", "cold", "warm", "cold x", "warm x", "cold/floor")]
    result: dict[str, object] = {"epochs": chosen.epochs, "repeats": chosen.repeats}
    warm_up()
    for name in chosen.networks:
        found = compare(name, chosen.repeats, chosen.epochs, chosen.plain_epochs)
        result[name] = found
        times = [f"{found[key]:.2f} s" for key in ("plain_loop", "floor", "cold", "warm")]
        ratios = [found["plain_loop"] / found["cold"], found["plain_loop"] / found["warm"]]
        rows.append(
            (
                name.partition("+")[0] + (" (part)" if "+" in name else ""),
                *times,
                *(f"{ratio:.0f}" for ratio in ratios),
                f"{found['cold'] / found['floor']:.2f}",
            )
        )
    table(rows)
    report(result, chosen.json)


def warm_up() -> None:
    """Imports and first calls, which no side is to pay for."""
    with tempfile.TemporaryDirectory() as store:
        loaded = network("alexnet")
        train, val = photos(loaded)
        fl.fit(loaded.model, train, val, features=store, epochs=1)


def compare(name: str, repeats: int, epochs: int, plain_epochs: int) -> dict[str, float]:
    """Median seconds of each side."""
    runs = [one_run(name, epochs, plain_epochs) for _ in range(repeats)]
    return {side: median([run[side] for run in runs]) for side in runs[0]}


def one_run(name: str, epochs: int, plain_epochs: int) -> dict[str, float]:
    """Seconds of each side, each on a copy of the network."""
    loaded = network(name)
    train, val = photos(loaded)
    found = {}
    model = copy.deepcopy(loaded.model)
    plain = seconds(lambda: plain_loop(model, train, val, plain_epochs))
    found["plain_loop"] = plain * epochs / plain_epochs
    found["floor"] = float("nan")
    if "+" not in name:
        head, body = apart_from_head(copy.deepcopy(loaded.model), loaded.head)
        form = fastest_form(body, torch.stack([train[place][0] for place in range(BATCH)]))
        found["floor"] = seconds(lambda: floor(head, body, form, train, val, epochs))
    with tempfile.TemporaryDirectory() as store:
        found["cold"] = seconds(lambda: frostline(loaded.model, train, val, store, 1e-3, epochs))
        renew(loaded.model.get_submodule(loaded.head))
        found["warm"] = seconds(lambda: frostline(loaded.model, train, val, store, 3e-3, epochs))
    print(name, {side: round(value, 2) for side, value in found.items()}, flush=True)
    return found


def renew(head: nn.Module) -> None:
    """A new start for the head."""
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()


def plain_loop(model: nn.Module, train: ImageDataset, val: ImageDataset, epochs: int) -> None:
    """The tutorial's loop, done right: frozen part in eval mode, validation without gradients."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    train_loader = DataLoader(train, batch_size=BATCH, shuffle=True, num_workers=2)
    val_loader = DataLoader(val, batch_size=BATCH, num_workers=2)
    for _ in range(epochs):
        model.train()
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for inputs, targets in val_loader:
                loss_of(model(inputs), targets)


def apart_from_head(model: nn.Module, path: str) -> tuple[nn.Module, nn.Module]:
    head = model.get_submodule(path)
    if hasattr(model, "backbone"):
        return head, model.backbone.eval()
    model.set_submodule(path, nn.Identity())
    return head, model.eval()


def fastest_form(body: nn.Module, inputs: Tensor) -> Form:
    def quickest(form: Form) -> float:
        tried, given = copy.deepcopy(body).to(**form), inputs.to(**form)
        with torch.no_grad():
            return min(seconds(lambda: tried(given)) for _ in range(3))

    return min(FORMS, key=quickest)


def floor(
    head: nn.Module,
    body: nn.Module,
    form: Form,
    train: ImageDataset,
    val: ImageDataset,
    epochs: int,
) -> None:
    """By hand for a head alone: features once, in the form known to be fastest, then bare steps."""
    body = body.to(**form)
    sets = [features_of(body, form, data) for data in (train, val)]
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        head.train()
        features, targets = sets[0].tensors
        for picked in torch.randperm(len(features)).split(BATCH):
            loss = nn.functional.cross_entropy(head(features[picked]), targets[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            features, targets = sets[1].tensors
            for start in range(0, len(features), BATCH):
                part = slice(start, start + BATCH)
                nn.functional.cross_entropy(head(features[part]), targets[part])


def features_of(body: nn.Module, form: Form, data: ImageDataset) -> TensorDataset:
    found, labels = [], []
    with torch.inference_mode(False), torch.no_grad():
        for inputs, targets in DataLoader(data, batch_size=BATCH, num_workers=2):
            found.append(body(inputs.to(**form)).float())
            labels.append(targets)
    return TensorDataset(torch.cat(found), torch.cat(labels))


def frostline(
    model: nn.Module, train: ImageDataset, val: ImageDataset, store: str, lr: float, epochs: int
) -> None:
    fl.fit(model, train, val, features=store, epochs=epochs, batch_size=BATCH, lr=lr)


if __name__ == "__main__":
    main()
