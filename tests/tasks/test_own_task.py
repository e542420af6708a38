"""A task of a user's own goes every way that classification goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import frostline as fl
from frostline.engine import Hook, Training
from frostline.models import put_head
from frostline.reports.comparing import compare_runs
from small_world import call


class Regression(fl.Task):
    """Regression, in the 20 lines that a user would write."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"mae": (outputs[:, 0] - targets).abs().sum()}

    def summarise(self, outputs: Tensor, targets: Tensor) -> fl.Metrics:
        error = float((outputs[:, 0] - targets).abs().mean())
        worst = float((outputs[:, 0] - targets).abs().max())
        found = fl.Metric("mae", error, "lower"), fl.Metric("worst", worst, "lower")
        return fl.Metrics(found, len(targets))


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    fl.freeze(model, "0")
    return model


def data(count: int = 40, seed: int = 1) -> TensorDataset:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, 3 * inputs[:, 0] + 1)


def fitted(model: nn.Module | None = None, **options: Any) -> fl.Run:
    asked = {"epochs": 3, "batch_size": 8, "lr": 0.05, "device": "cpu", "task": Regression()}
    return fl.fit(model or net(), data(), data(12, 2), **{**asked, **options})


def values(run: fl.Run) -> list[tuple[float, ...]]:
    return [(*r.train.values(), *r.validation.headline().values(), r.best) for r in run.history]


def test_a_regression_gets_better_and_keeps_its_best_epoch() -> None:
    run = fitted(epochs=15)
    errors = [record.validation["mae"] for record in run.history]
    assert errors[-1] < errors[0] / 2
    assert run.best.epoch == errors.index(min(errors)) + 1
    assert run.best.validation.samples == 12


def test_the_stored_path_gives_the_plain_loops_bits(tmp_path: Path) -> None:
    plain, stored = net(), net()
    one = fitted(plain, features="off")
    other = fitted(stored, features=tmp_path / "store", precision="exact")
    assert other.computed == 52
    assert str(fl.fingerprint(plain)) == str(fl.fingerprint(stored))
    assert values(one) == values(other)


def test_training_metrics_are_means_over_the_epoch() -> None:
    for record in fitted().history:
        assert record.train["mae"] == pytest.approx(record.train["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "batches"])
def test_numbers_come_as_targets_whatever_the_data_is(kind: str) -> None:
    class Pairs(Dataset[tuple[Tensor, float]]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, float]:
            inputs, target = data(12)[index]
            return inputs, float(target)

    batches = [(data(8, seed).tensors[0], data(8, seed).tensors[1]) for seed in range(2)]
    given = Pairs() if kind == "pairs" else batches
    run = fl.fit(net(), given, given, task=Regression(), epochs=1, device="cpu")
    assert run.best.validation["mae"] > 0


def test_files_hold_its_metrics_by_name(tmp_path: Path) -> None:
    run = fitted(out=tmp_path / "run")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"train_loss", "train_mae", "val_mae", "val_worst"} <= set(line)
    assert "val_accuracy" not in line
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["mae"] == run.best.validation["mae"]
    assert not (tmp_path / "run" / "best" / "predictions.safetensors").exists()


def test_the_report_and_a_comparison_show_its_metrics_and_no_classes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        fitted(out=tmp_path / name, seed=len(name))
    page = (tmp_path / "one" / "report.html").read_text()
    assert "<dt>MAE</dt>" in page
    assert "<dt>Worst</dt>" in page
    assert "Class by class" not in page
    assert "no predictions of single samples are kept for this task" in page
    found = compare_runs([tmp_path / "one", tmp_path / "other"])
    assert [c.heading for c in found.metrics().columns][:3] == ["run", "MAE", "worst"]
    assert "Validation MAE" in found.page()


def test_evaluating_a_run_without_classes_says_what_it_lacks(tmp_path: Path) -> None:
    fitted(out=tmp_path / "run")
    for more in ([], ["--csv", tmp_path / "table.csv"], ["--report", tmp_path / "page.html"]):
        answer = call("evaluate", tmp_path / "run", tmp_path, *more)
        assert answer.status == 1
        assert "was trained on a task of one's own" in answer.message
    assert list(tmp_path.glob("*.*")) == []


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def stop(training: Training) -> None:
        if training.position.epochs == 2:
            raise KeyboardInterrupt

    hook = Hook()
    hook.on_epoch = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fitted(out=tmp_path / "run", hooks=[hook])
    whole, resumed = net(), net()
    expected = fitted(whole)
    found = fitted(resumed, out=tmp_path / "run", resume=True)
    assert str(fl.fingerprint(whole)) == str(fl.fingerprint(resumed))
    assert values(found) == values(expected)


def test_another_of_its_metrics_can_decide() -> None:
    run = fitted(epochs=6, monitor="worst", schedule="constant", lr=0.3)
    worst = [record.validation["worst"] for record in run.history]
    assert run.best.epoch == worst.index(min(worst)) + 1


@pytest.mark.parametrize("asked", ["recipe", "plan"])
def test_a_metric_that_it_has_not_is_refused_before_training(asked: str) -> None:
    until = fl.Until(monitor="mea", patience=2)
    plan = fl.Plan([fl.Phase(train="2", epochs=1, until=until)])
    options: dict[str, Any] = {"monitor": "mea"} if asked == "recipe" else {"plan": plan}
    with pytest.raises(fl.ConfigError, match=r"^the task has no metric 'mea'\. Nearest: mae\.$"):
        fl.fit(net(), data(), data(), task=Regression(), device="cpu", **options)


def test_a_phase_ends_where_its_metric_falls_to_the_target() -> None:
    plan = fl.Plan([fl.Phase(train="2", epochs=50, until=fl.Until(monitor="mae", target=0.8))])
    run = fl.fit(net(), data(), data(), task=Regression(), plan=plan, lr=0.05, device="cpu")
    assert run.phases[0].ended == "mae reached 0.8"
    assert [record.validation["mae"] <= 0.8 for record in run.history][-2:] == [False, True]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^there is no task 'regresion' \(nearest: 'reg"):
        fitted(task="regresion")


@pytest.mark.parametrize(
    ("given", "found"), [(Regression, "the class Regression"), (nn.L1Loss(), "a L1Loss"), (3, "an")]
)
def test_what_is_no_task_is_refused(given: Any, found: str) -> None:
    with pytest.raises(fl.ConfigError, match=rf"^the task is {found}.*inherits fl\.Task\.$"):
        fitted(task=given)


@pytest.mark.parametrize(
    ("mean", "found"), [(Tensor.item, "a float"), (torch.abs, r"a Tensor of shape \(\d+,\)")]
)
def test_a_loss_that_is_no_number_to_minimise_is_refused(
    mean: Callable[[Tensor], Any], found: str
) -> None:
    class Wrong(Regression):
        def loss(self, outputs: Tensor, targets: Tensor) -> Any:
            errors = outputs[:, 0] - targets
            return mean(errors.sum() if mean is Tensor.item else errors)

    with pytest.raises(fl.ConfigError, match=rf"^the loss of Wrong gave {found} for a batch, not"):
        fitted(task=Wrong())


def test_metrics_of_another_kind_are_refused_before_training() -> None:
    class Wrong(Regression):
        def summarise(self, outputs: Tensor, targets: Tensor) -> Any:
            return super().summarise(outputs, targets).headline()

    with pytest.raises(fl.ConfigError, match=r"^summarise of Wrong gave a dict\. Return fl\.Met"):
        fitted(task=Wrong())


def test_classes_beside_another_task_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^got classes beside a task\. Give them to it"):
        fitted(classes=["a", "b"])


def test_classification_by_name_and_with_names_is_what_is_done_by_default() -> None:
    labelled = TensorDataset(data().tensors[0], (data().tensors[1] > 0).long())
    wide = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    fl.freeze(wide, "0")
    runs = [
        fl.fit(wide, labelled, labelled, task=task, epochs=1, lr=1e-12, device="cpu")
        for task in (None, "classification", fl.Classification("ab"))
    ]
    assert [run.best.validation.accuracy for run in runs] == [runs[0].best.validation.accuracy] * 3
    named = [[c.name for c in run.best.validation.per_class] for run in runs]
    assert named == [["0", "1"], ["0", "1"], ["a", "b"]]


def test_a_model_that_gives_maps_is_no_classifier_and_is_told_so() -> None:
    maps = nn.Conv2d(3, 2, 1)
    pictures = TensorDataset(torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(fl.ModelError, match=r"shape \(4, 2, 5, 5\) .*give task='segmentation'"):
        fl.fit(maps, pictures, pictures, epochs=1, device="cpu")


def test_a_task_without_a_loss_cannot_be_made() -> None:
    class Half(fl.Task):
        def summarise(self, outputs: Tensor, targets: Tensor) -> fl.Metrics:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"abstract method '?loss"):
        Half()


def test_targets_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(fl.DataError, match=r"^the targets of batch 0 are list, not numbers\. Give"):
        Regression().targets(["a", "b"], 2, "batch 0")
    with pytest.raises(fl.DataError, match=r"have the shape \(3,\) for 2 samples\. Give one for"):
        Regression().targets([1.0, 2.0, 3.0], 2, "batch 0")


def test_a_step_is_estimated_by_the_loss_of_the_task() -> None:
    found = fl.estimate(net(), torch.randn(4, 6), task=Regression(), calibration_seconds=0.2)
    assert found.as_dict()
    with pytest.raises(fl.ConfigError, match="there is no task 'none'"):
        fl.estimate(net(), torch.randn(4, 6), task="none")


def test_a_head_has_the_width_of_the_task() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    assert put_head(model, classes=Regression().width).head == "2"
    assert model[2].out_features == 1
    put_head(model, classes=fl.Classification("abc").width)
    assert model[2].out_features == 3


def test_the_doctor_goes_backwards_from_the_loss_of_the_task() -> None:
    asked: list[tuple[int, ...]] = []

    class Seen(Regression):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            asked.append(tuple(targets.shape))
            return super().loss(outputs, targets)

        def example_targets(self, outputs: Tensor) -> Tensor:
            return torch.zeros(len(outputs))

    found = fl.doctor(net(), torch.randn(4, 6), targets=torch.randn(4), task=Seen())
    assert asked
    assert set(asked) == {(4,)}
    assert not [finding for finding in found.findings if "gradient" in finding.message]
