"""Runs of the tasks: stored features give the plain loop's bits, and a run is taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.config import RunSettings
from frostline.engine import Hook, Training
from frostline.models import load_model
from frostline.records import RunFolder
from frostline.records.reading import read_records


def rows(seed: int, count: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def numbers(seed: int = 1, count: int = 42) -> TensorDataset:
    inputs = rows(seed, count)
    return TensorDataset(inputs, torch.stack([300 * inputs[:, 0] + 1000, inputs[:, 1]], dim=1))


def labels(seed: int = 1, count: int = 42) -> TensorDataset:
    inputs = rows(seed, count)
    return TensorDataset(inputs, (inputs[:, :2] > 0).int())


def masks(seed: int = 1, count: int = 10) -> TensorDataset:
    inputs = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    truth = (inputs.mean(dim=1) > 0).to(torch.uint8)
    truth[:, 0] = 255
    return TensorDataset(inputs, truth)


def tokens(seed: int = 1, count: int = 20) -> TensorDataset:
    inputs = torch.randint(0, 12, (count, 7), generator=torch.Generator().manual_seed(seed))
    truth = inputs % 2
    truth[:, 5:] = -100
    return TensorDataset(inputs, truth)


def net(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs))
    fl.freeze(model, "0")
    return model


def tagger() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8), nn.ReLU(), nn.Linear(8, 2))
    fl.freeze(model, "0")
    return model


class Segmenter(nn.Module):
    """Half of the masks' size, in a dict as torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classifier = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        fl.freeze(self, "backbone")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.classifier(self.backbone(x))}


EVERY: list[Any] = [
    ("regression", net, numbers),
    (fl.Regression(loss="huber"), net, numbers),
    ("multilabel", net, labels),
    (fl.MultiLabel("ab", thresholds="best"), net, labels),
    (fl.Segmentation(loss="both"), Segmenter, masks),
    (fl.Tokens(["O", "B-X"]), tagger, tokens),
]


def fitted(model: nn.Module, data: Callable[..., Any], **options: Any) -> fl.Run:
    asked = {"epochs": 3, "batch_size": 8, "lr": 0.02, "device": "cpu"}
    return fl.fit(model, data(), data(2, 11), **{**asked, **options})


def same(one: fl.Run, other: fl.Run) -> bool:
    return str(fl.fingerprint(one.model)) == str(fl.fingerprint(other.model)) and [
        (r.train, r.validation) for r in one.history
    ] == [(r.train, r.validation) for r in other.history]


@pytest.mark.parametrize(("task", "make", "data"), EVERY)
def test_stored_features_give_the_plain_loops_bits(
    task: Any, make: Callable[[], nn.Module], data: Callable[..., Any], tmp_path: Path
) -> None:
    plain = fitted(make(), data, task=task, features="off")
    stored = fitted(make(), data, task=task, features=tmp_path / "store", precision="exact")
    assert stored.computed == len(data()) + 11
    assert same(plain, stored)
    losses = [record.validation["loss"] for record in plain.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("task", "make", "data"), EVERY[:5:2])
def test_a_stopped_run_goes_on_and_keeps_its_task(
    task: Any, make: Callable[[], nn.Module], data: Callable[..., Any], tmp_path: Path
) -> None:
    def stop(training: Training) -> None:
        if training.position.epochs == 2:
            raise KeyboardInterrupt

    hook = Hook()
    hook.on_epoch = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fitted(make(), data, task=task, out=tmp_path / "run", hooks=[hook])
    resumed = fitted(make(), data, task=task, out=tmp_path / "run", resume=True)
    assert same(fitted(make(), data, task=task), resumed)
    kept = RunSettings.read(tmp_path / "run" / "run.toml").as_task()
    assert kept is not None
    assert kept.settings() == resumed.task.settings()
    records = read_records(RunFolder(tmp_path / "run"))
    assert records.result is not None
    assert records.result.tables == tuple(resumed.best.validation.tables())
    assert records.result.metrics == resumed.best.validation.headline()


def test_chosen_thresholds_are_those_of_the_best_epoch_and_a_longer_run_chooses_anew(
    tmp_path: Path,
) -> None:
    task = fl.MultiLabel("ab", thresholds="best")
    run = fitted(net(), labels, task=task, out=tmp_path / "run")
    best = run.best.validation
    assert run.task.settings().thresholds == tuple(part.threshold for part in best.per_label)  # type: ignore[union-attr,attr-defined]
    inputs, targets = labels(2, 11).tensors
    found = run.task.summarise(run.model(inputs).detach(), targets)
    assert found["macro_f1"] == best["macro_f1"]
    longer = fitted(net(), labels, task=task, out=tmp_path / "run", resume=True, epochs=5)
    assert len(longer.history) == 5


def test_a_resumed_run_has_the_same_loss(tmp_path: Path) -> None:
    fitted(net(), numbers, task="regression", out=tmp_path / "run")
    with pytest.raises(fl.ConfigError, match=r"task\.loss was 'mse' and is 'mae'"):
        fitted(net(), numbers, task=fl.Regression(loss="mae"), out=tmp_path / "run", resume=True)


def test_a_regression_is_told_in_the_targets_units_whatever_their_size() -> None:
    run = fitted(net(), numbers, task="regression", epochs=40)
    best = run.best.validation
    assert best["r2"] > 0.8
    first, second = best.per_target  # type: ignore[attr-defined]
    assert first.std > 200
    assert first.rmse < 0.4 * first.std
    assert second.rmse < 0.4 * second.std
    predicted = run.task.predicted(run.model(numbers(2, 11).tensors[0]).detach())  # type: ignore[attr-defined]
    assert predicted[:, 0].mean() == pytest.approx(first.mean, rel=0.1)


def test_unscaled_targets_are_learnt_as_they_are() -> None:
    run = fitted(net(), numbers, task=fl.Regression(scale="none"), epochs=1)
    assert run.best.validation["loss"] > 1e5


@pytest.mark.parametrize("kind", ["list", "batches"])
def test_targets_that_come_with_their_inputs_are_scaled_too(kind: str) -> None:
    inputs, targets = numbers().tensors
    pairs = list(zip(inputs, targets, strict=True))
    batches = [(inputs[at : at + 8], targets[at : at + 8]) for at in range(0, 42, 8)]
    given = torch.utils.data.Subset(pairs, range(42)) if kind == "list" else batches  # type: ignore[arg-type]
    run = fl.fit(net(), given, numbers(), task="regression", epochs=1, device="cpu")
    expected = fl.fit(net(), numbers(), numbers(), task="regression", epochs=1, device="cpu")
    assert run.task.settings() == expected.task.settings()


def test_tokens_are_judged_over_batches_padded_to_different_lengths() -> None:
    (inputs, targets), (others, truth) = tokens().tensors, tokens(2, 9).tensors
    short = [(inputs[:8, :5], targets[:8, :5]), (inputs[8:], targets[8:])]
    parts = [(others[:4, :6], truth[:4, :6]), (others[4:], truth[4:])]
    batches, judged = (DataLoader(pairs, batch_size=None) for pairs in (short, parts))
    run = fl.fit(tagger(), batches, judged, task="tokens", epochs=1, device="cpu")
    whole = DataLoader([(others, truth)], batch_size=None)
    at_once = fl.fit(tagger(), batches, whole, task="tokens", epochs=1, device="cpu")
    assert run.best.validation == at_once.best.validation


def test_balanced_labels_weigh_those_that_few_samples_have() -> None:
    inputs, _ = labels().tensors
    rare = TensorDataset(inputs, torch.stack([inputs[:, 0] > 1.2, inputs[:, 1] > 0], dim=1))
    options: dict[str, Any] = {"task": "multilabel", "epochs": 1, "lr": 1e-9, "device": "cpu"}
    plain = fl.fit(net(), rare, rare, **options)
    weighed = fl.fit(net(), rare, rare, class_weights="balanced", **options)
    assert weighed.history[0].train["loss"] > 1.2 * plain.history[0].train["loss"]


# A loss and metrics of one's own.


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def test_a_loss_of_ones_own_goes_the_plain_and_the_stored_way(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"loss": nn.MSELoss(), "metrics": {"mae": mae}, "epochs": 4}
    plain = fitted(net(), numbers, features="off", **asked)
    stored = fitted(net(), numbers, features=tmp_path / "s", precision="exact", **asked)
    assert same(plain, stored)
    assert list(plain.best.validation.headline()) == ["mae", "loss"]
    errors = [record.validation["mae"] for record in plain.history]
    assert plain.best.epoch == errors.index(min(errors)) + 1


def test_a_loss_of_ones_own_takes_all_that_the_model_returns(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 1)
            fl.freeze(self, "body")

        def forward(self, x: Tensor) -> dict[str, Any]:
            found = self.body(x).relu()
            return {"parts": (self.one(found), self.other(found)), "many": found.sum(dim=1)}

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        one, other = outputs["parts"]
        return mae(one[:, 0], targets[:, 1]) + mae(other[:, 0], targets[:, 1] ** 2)

    def cost(outputs: Any, targets: Tensor) -> Tensor:
        assert len(outputs["many"]) == len(targets)
        return loss(outputs, targets)

    asked: dict[str, Any] = {"loss": loss, "metrics": {"cost": ("lower", cost)}}
    plain = fitted(Two(), numbers, features="off", **asked)
    stored = fitted(Two(), numbers, features=tmp_path / "s", precision="exact", **asked)
    assert same(plain, stored)
    assert plain.best.validation["cost"] == plain.best.validation["loss"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss": 3}, r"^loss is an int\. Give a callable"),
        ({"loss": nn.L1Loss}, r"^loss is the class L1Loss\. Give a callable"),
        ({"loss": mae, "metrics": {"cost": mae}}, r"a lower cost is the better one is not known\."),
        ({"loss": mae, "metrics": {"mae": 3}}, r"^the metric mae is an int\. Give a callable"),
        ({"loss": mae, "metrics": [mae]}, r"^metrics is a list\. Give a dict of callables"),
        ({"loss": mae, "metrics": {"mae": torch.sub}}, r"^the metric mae gave a Tensor for all"),
        ({"loss": torch.sub}, r"^the metric loss gave a Tensor for all"),
        ({"metrics": {"mae": mae}}, r"^got metrics without a loss\."),
        ({"loss": mae, "task": "regression"}, r"^got loss and task together\."),
        ({"loss": mae, "label_smoothing": 0.1}, r"heeds no label_smoothing\. Leave it out\.$"),
        ({"task": "segmentation"}, r"^the masks of .* are float32 of shape \(4, 2\)\. Give whole"),
        ({"task": "tokens"}, r"^the targets of .* are float32 of shape"),
        ({"task": "multilabel"}, r"^the label '?0'? of sample 0 is 687"),
        ({"task": fl.Regression(["one"])}, r"2 numbers for each sample, but there are 1 targets"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(fl.FrostlineError, match=told) as caught:
        fitted(net(), numbers, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_target_that_is_no_number_is_found_before_anything_is_trained(
    side: str, tmp_path: Path
) -> None:
    bad, good = numbers(), numbers(2)
    bad.tensors[1][17, 1] = float("nan")
    given = (bad, good) if side == "train" else (good, bad)
    with pytest.raises(fl.DataError, match=r"^the target.* of sample 17 is nan\. Correct it"):
        fl.fit(net(), *given, task="regression", out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_torchvisions_segmenters_have_a_head_for_the_classes_and_no_other(name: str) -> None:
    loaded = load_model(f"torchvision:{name}", weights="none", classes=5)
    assert loaded.head == "classifier"
    loaded.model.train()
    with torch.no_grad():
        returned = loaded.model(torch.zeros(2, 3, 32, 32))
    assert list(returned) == ["out"]
    assert fl.Segmentation(5).read(returned).shape == (2, 5, 32, 32)
