"""Metrics of the tasks are those of scikit-learn and torchmetrics."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import frostline as fl
from frostline.tasks import TaskSettings, better_of, task_from
from frostline.tasks.ranking import average_precision, best_threshold

# Here, since its import sets variables of the environment.
metrics = pytest.importorskip("sklearn.metrics")

RANDOM = torch.Generator().manual_seed(0)


def ties(count: int, labels: int) -> tuple[Tensor, Tensor]:
    """Scores, many of which are equal, and what they should have been."""
    scores = torch.randint(0, 8, (count, labels), generator=RANDOM).float() - 4
    truth = (scores + 4 * torch.randn(count, labels, generator=RANDOM) > 0).float()
    return scores, truth


def test_multi_label_metrics_are_scikit_learns() -> None:
    scores, truth = ties(60, 5)
    found = fl.MultiLabel("abcde").summarise(scores, truth)
    chances, taken = scores.sigmoid().numpy(), (scores >= 0).numpy()
    assert found.headline() == pytest.approx(
        {
            "mean_average_precision": metrics.average_precision_score(truth, chances),
            "macro_f1": metrics.f1_score(truth, taken, average="macro"),
            "micro_f1": metrics.f1_score(truth, taken, average="micro"),
            "subset_accuracy": metrics.accuracy_score(truth, taken),
            "loss": float(torch.nn.functional.binary_cross_entropy_with_logits(scores, truth)),
        }
    )
    each = metrics.precision_recall_fscore_support(truth, taken)
    for label, *expected in zip(found.per_label, *each, strict=True):
        assert [label.precision, label.recall, label.f1, label.samples] == pytest.approx(expected)


def test_a_label_that_no_sample_has_counts_in_no_mean() -> None:
    scores, truth = torch.tensor([[1.0, -1.0], [-1.0, -2.0]]), torch.tensor([[1.0, 0], [0, 0]])
    found = fl.MultiLabel("ab").summarise(scores, truth)
    assert found["mean_average_precision"] == found["macro_f1"] == 1.0
    assert math.isnan(found.per_label[1].average_precision)


def test_the_chosen_threshold_has_the_highest_f1_that_any_has() -> None:
    scores, truth = ties(80, 6)
    for column, wanted in zip(scores.sigmoid().T, truth.T > 0, strict=True):
        at = best_threshold(column, wanted)
        every = [metrics.f1_score(wanted, column >= cut) for cut in column.unique()]
        assert metrics.f1_score(wanted, column >= at) == pytest.approx(max(every))


def test_average_precision_needs_a_positive() -> None:
    assert math.isnan(average_precision(torch.rand(3), torch.zeros(3, dtype=torch.bool)))


@pytest.mark.parametrize("targets", [1, 3])
def test_regression_metrics_are_scikit_learns(targets: int) -> None:
    outputs = torch.randn(40, targets, generator=RANDOM)
    truth = outputs + 0.3 * torch.randn(40, targets, generator=RANDOM)
    found = fl.Regression(targets, scale="none").summarise(outputs, truth).headline()
    assert found == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(truth, outputs),
            "rmse": metrics.root_mean_squared_error(truth, outputs),
            "r2": metrics.r2_score(truth, outputs),
            "loss": metrics.mean_squared_error(truth, outputs),
        },
        rel=1e-5,
    )


def masks() -> tuple[Tensor, Tensor]:
    logits = torch.randn(6, 4, 9, 7, generator=RANDOM)
    truth = torch.randint(0, 4, (6, 9, 7), generator=RANDOM)
    truth[truth == 2] = 1  # one class has no pixel of its own
    truth[:, :2] = 255
    return logits, truth


def test_segmentation_metrics_are_those_of_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old package that it looks for
        functional = pytest.importorskip("torchmetrics.functional")
    logits, truth = masks()
    found = fl.Segmentation(4).summarise(logits, truth)
    options = {"task": "multiclass", "num_classes": 4, "ignore_index": 255}
    guess = logits.argmax(dim=1)
    iou = functional.jaccard_index(guess, truth, average="none", **options)
    assert [part.iou for part in found.per_region] == pytest.approx(iou.tolist())
    assert found["mean_iou"] == pytest.approx(float(iou.mean()))
    dice = functional.f1_score(guess, truth, average="none", **options)
    assert [part.dice for part in found.per_region] == pytest.approx(dice.tolist())
    right = functional.accuracy(guess, truth, average="micro", **options)
    assert found["pixel_accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "both"])
def test_what_is_kept_of_masks_gives_the_metrics_of_the_masks(loss: Any) -> None:
    logits, truth = masks()
    task = fl.Segmentation(4, loss=loss)
    kept = task.kept(logits, truth)
    assert kept[0].shape == (6, 13)
    assert task.summarise(*kept) == task.summarise(logits, truth)
    assert torch.equal(task.badness(*kept), task.badness(logits, truth))
    cut = task.kept(logits[:, :, 2:], truth[:, 2:])[0]  # without the rows that are ignored
    assert task.answers(kept[0]) == task.answers(cut) == task.answers(logits[:, :, 2:])


def test_cross_entropy_of_masks_is_torchs_and_none_of_nothing() -> None:
    logits, truth = masks()
    expected = torch.nn.functional.cross_entropy(logits, truth, ignore_index=255)
    assert fl.Segmentation(4).loss(logits, truth).item() == pytest.approx(expected.item())
    for loss in ("cross_entropy", "dice", "both"):
        task = fl.Segmentation(4, loss=loss)  # type: ignore[arg-type]
        assert task.loss(logits, torch.full_like(truth, 255)).item() == 0


def test_the_dice_loss_is_none_where_masks_are_met_and_counts_classes_that_occur() -> None:
    _, truth = masks()
    sure = 100 * torch.nn.functional.one_hot(truth % 255, 4).movedim(-1, 1).float()
    task = fl.Segmentation(4, loss="dice")
    assert task.loss(sure, truth).item() == pytest.approx(0, abs=1e-6)
    assert task.loss(-sure, truth).item() == pytest.approx(1, abs=1e-6)


def test_outputs_are_interpolated_to_larger_masks() -> None:
    small = torch.randn(2, 3, 4, 5, generator=RANDOM)
    truth = torch.randint(0, 3, (2, 8, 10), generator=RANDOM)
    large = torch.nn.functional.interpolate(small, size=(8, 10), mode="bilinear")
    task = fl.Segmentation(3)
    assert task.summarise(small, truth) == task.summarise(large, truth)
    assert torch.equal(task.predicted(small, (8, 10)), large.argmax(dim=1))


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def spans(*rows: str) -> Tensor:
    """Tags by their number, `.` for none."""
    return torch.tensor([[-100 if tag == "." else int(tag) for tag in row] for row in rows])


@pytest.mark.parametrize(
    ("truth", "guess", "f1"),
    [
        ("0120", "0120", 1.0),
        ("0120", "0100", 0.0),  # cut short
        ("0120", "0340", 0.0),  # of another kind
        ("0220", "0120", 1.0),  # an I- that continues nothing begins a span
        ("1111", "1222", 0.0),  # four spans of one token, and one of four
        ("12.34", "12034", 1.0),  # what has no tag is left out
        ("1234", "1200", 2 / 3),
    ],
)
def test_whole_spans_are_counted_as_in_conll(truth: str, guess: str, f1: float) -> None:
    logits = torch.nn.functional.one_hot(spans(guess), 5).float()
    assert fl.Tokens(TAGS).summarise(logits, spans(truth))["span_f1"] == pytest.approx(f1)


def test_metrics_of_tokens_are_scikit_learns_over_those_that_have_a_tag() -> None:
    logits = torch.randn(7, 9, 3, generator=RANDOM)
    truth = torch.randint(0, 3, (7, 9), generator=RANDOM)
    truth[torch.arange(9) >= torch.arange(3, 10)[:, None]] = -100
    found = fl.Tokens(3).summarise(logits, truth)
    valid = truth != -100
    wanted, guess = truth[valid], logits.argmax(dim=2)[valid]
    assert found.headline() == pytest.approx(
        {
            "macro_f1": metrics.f1_score(wanted, guess, average="macro"),
            "token_accuracy": metrics.accuracy_score(wanted, guess),
            "loss": float(torch.nn.functional.cross_entropy(logits[valid], wanted)),
        }
    )


def _scaled() -> fl.Regression:
    task = fl.Regression(["weight", "height"], loss="huber", huber_delta=0.5)
    task._mean, task._std = torch.tensor([70.0, 1.7]), torch.tensor([12.5, 0.1])
    task._is_scaled = True
    return task


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (fl.Classification("ab"), torch.randn(3, 2)),
        (fl.MultiLabel("ab", thresholds=[0.3, 0.6]), torch.randn(3, 2)),
        (_scaled(), torch.randn(3, 2)),
        (fl.Segmentation("ab", loss="dice", ignore_index=9), torch.randn(3, 2, 4, 4)),
        (fl.Tokens("ab"), torch.randn(3, 5, 2)),
    ],
)
def test_a_task_made_again_from_its_settings_answers_the_same(
    task: fl.Task, outputs: Tensor
) -> None:
    settings = task.settings()
    assert settings is not None
    again = task_from(TaskSettings(**settings.model_dump(mode="json")))
    assert again.settings() == settings
    assert again.answers(outputs) == task.answers(outputs)
    assert again.width == task.width == 2
    example = task.example_targets(outputs)
    assert torch.equal(again.loss(outputs, example), task.loss(outputs, example))


def test_the_worst_sample_has_the_largest_badness() -> None:
    sure = torch.tensor([[4.0, -4.0], [4.0, -4.0], [0.1, 0.0]])
    classes = fl.Classification("ab").badness(sure, torch.tensor([0, 1, 1]))
    assert classes.argsort(descending=True).tolist() == [1, 2, 0]
    labels = fl.MultiLabel("ab").badness(sure, torch.tensor([[1.0, 0], [0, 1], [0, 1]]))
    assert labels.argsort(descending=True).tolist() == [1, 2, 0]
    numbers = _scaled().badness(torch.zeros(2, 2), torch.tensor([[70.0, 1.7], [70.0, 1.9]]))
    assert numbers.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
    tags = fl.Tokens("ab").badness(sure[:, None], torch.tensor([[0], [1], [1]]))
    assert tags.argsort(descending=True).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "better"),
    [("val_mae", "lower"), ("macro_f1", "higher"), ("my_loss", "lower"), ("ndcg", None)],
)
def test_the_direction_of_a_usual_name_is_known(name: str, better: str | None) -> None:
    assert better_of(name) == better


def test_answers_are_plain_values() -> None:
    assert fl.MultiLabel("ab").answers(torch.tensor([[3.0, -3.0]]))[0]["labels"] == ["a"]
    assert _scaled().answers(torch.zeros(1, 2)) == [{"weight": 70.0, "height": pytest.approx(1.7)}]
    mask = torch.zeros(1, 3, 2, 2)
    mask[0, 1, 0, 0] = 1
    assert fl.Segmentation("abc").answers(mask) == [{"share": {"a": 0.75, "b": 0.25}}]
    best = fl.Classification("ab").answers(torch.tensor([[0.0, 2.0]]), top=2)[0]
    assert best["class"] == "b"
    assert [one["class"] for one in best["top"]] == ["b", "a"]  # type: ignore[attr-defined]


def error(make: Callable[[], object]) -> str:
    with pytest.raises(fl.FrostlineError) as caught:
        make()
    return str(caught.value)


NAMES = ("one.jpg", "other.jpg")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fl.Regression(loss="mea"), r"no loss 'mea' \(nearest: 'mae'\)"),  # type: ignore[arg-type]
        (
            lambda: fl.Regression().check(torch.ones(2, 1), torch.tensor([[1], [math.inf]]), NAMES),
            "the target of other.jpg is inf",
        ),
        (
            lambda: fl.Regression().check(torch.ones(2, 1), torch.ones(2, 2), NAMES),
            "there are 2 targets for each sample, but the model gives 1 numbers",
        ),
        (
            lambda: fl.Regression().targets(["a", "b"], 2, "the data"),
            "the targets of the data are list, not numbers",
        ),
        (
            lambda: fl.MultiLabel("ab").check(
                torch.ones(2, 2), torch.tensor([[1, 0], [0, 0.5]]), NAMES
            ),
            "the label 'b' of other.jpg is 0.5",
        ),
        (
            lambda: fl.MultiLabel().targets(np.array([0, 2]), 2, "the data"),
            "for one class in each sample use the task 'classification'",
        ),
        (lambda: fl.MultiLabel("ab", thresholds=[0.5, 0.5, 0.5]), "got 3 thresholds for 2 labels"),
        (
            lambda: fl.Segmentation(2).check(
                torch.ones(2, 2, 8, 8), torch.full((2, 8, 8), 7), NAMES
            ),
            "the mask of one.jpg has the values 7, but the model tells 2 classes apart",
        ),
        (
            lambda: fl.Segmentation(2).check(
                torch.ones(2, 2, 8, 8), torch.zeros(2, 8, 12, dtype=torch.long), NAMES
            ),
            "the mask of one.jpg is 8 x 12, but the model's output is 8 x 8",
        ),
        (
            lambda: fl.Segmentation().targets(torch.zeros(2, 3, 8, 8), 2, "the data"),
            r"the masks of the data are float32 of shape \(2, 3, 8, 8\)",
        ),
        (lambda: fl.Segmentation(2).read(torch.ones(2, 1, 8, 8)), "takes logits of two classes"),
        (
            lambda: fl.Tokens(2).check(torch.ones(1, 2, 2), torch.tensor([[0, 3]]), NAMES),
            "token 1 of one.jpg has the tag 3",
        ),
        (
            lambda: fl.Tokens(2).check(torch.ones(1, 2, 2), torch.tensor([[0, 1, 1]]), NAMES),
            "one.jpg has 3 tags, but the model gives an output for 2 tokens",
        ),
    ],
)
def test_what_does_not_go_with_a_task_is_told_in_one_line(
    make: Callable[[], object], told: str
) -> None:
    message = error(make)
    assert re.search(told, message), message
    assert "\n" not in message
