"""Metrics by name: which of two is better, and what is written of them is read again."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import frostline as fl
from frostline.tasks import Best, evaluate_logits


def accuracy(value: float) -> fl.Metric:
    return fl.Metric("accuracy", value)


def loss(value: float) -> fl.Metric:
    return fl.Metric("loss", value, "lower")


def test_the_direction_says_what_is_better() -> None:
    assert accuracy(0.6).beats(0.5)
    assert not loss(0.6).beats(0.5)
    assert loss(0.4).beats(0.5)
    assert not accuracy(0.5).beats(0.5)


@given(value=st.floats(), best=st.floats(allow_nan=False))
def test_without_min_change_any_gain_is_better(value: float, best: float) -> None:
    assert accuracy(value).beats(best) == (value > best)
    assert loss(value).beats(best) == (value < best)


def test_the_first_value_is_the_best_so_far() -> None:
    assert loss(1e9).beats(None)


@pytest.mark.parametrize("best", [None, 0.5])
def test_nan_is_never_better(best: float | None) -> None:
    assert not loss(math.nan).beats(best)


def test_a_change_below_the_least_does_not_count() -> None:
    assert accuracy(0.75).beats(0.5, min_change=0.25)
    assert not accuracy(0.7).beats(0.5, min_change=0.25)
    assert accuracy(0.1).beats(None, min_change=0.25)


def test_a_target_is_reached_from_its_own_side() -> None:
    assert [accuracy(v).reaches(0.5) for v in (0.4, 0.5, 0.6)] == [False, True, True]
    assert [loss(v).reaches(0.5) for v in (0.4, 0.5, 0.6)] == [True, True, False]
    assert not accuracy(math.nan).reaches(0.5)
    assert not loss(math.nan).reaches(0.5)


@pytest.mark.parametrize("name", ["", "samples", "epoch", "frozen"])
def test_a_name_that_files_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(fl.ConfigError, match=r"^a metric is named .* Give it another name: epoch"):
        fl.Metrics((fl.Metric(name, 0.5),), 1)


def test_a_direction_that_is_none_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^the metric mae is better 'down'\. Say 'higher' or"):
        fl.Metric("mae", 0.5, "down")  # type: ignore[arg-type]


def test_an_unknown_metric_names_the_nearest() -> None:
    found = fl.Metrics((fl.Metric("mean_error", 0.5, "lower"),), 3)
    with pytest.raises(fl.ConfigError, match=r"no metric 'mean_eror'\. Nearest: mean_error\.$"):
        found["mean_eror"]


def test_metrics_read_back_as_they_were_written() -> None:
    logits, targets = torch.randn(20, 3), torch.randint(3, (20,))
    like = evaluate_logits(logits[:2], targets[:2], classes="abc")
    found = evaluate_logits(logits, targets, classes="abc")
    assert like.read(json.loads(json.dumps(found.as_dict()))) == found
    own = fl.Metrics((fl.Metric("mae", math.inf, "lower"),), 3)
    assert own.read(json.loads(json.dumps(own.as_dict()))) == own


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.51234, "0.5123"),
        ("accuracy", 0.51234, "0.512"),
        ("worst", 0.0, "0.000"),
        ("worst", 0.000051234, "5.123e-05"),
        ("worst", 123456.7, "1.235e+05"),
        ("worst", math.nan, "nan"),
    ],
)
def test_a_value_for_people_loses_no_small_number(name: str, value: float, text: str) -> None:
    assert fl.Metrics((fl.Metric(name, value),), 1).line() == f"{name} {text}"


def kept(
    epochs: list[tuple[float, float]], *, samples: int = 50, monitor: str = "auto"
) -> list[int]:
    """The best epoch after each one, from their accuracies and losses."""
    best, found = Best(), []
    for epoch, (share, cost) in enumerate(epochs, start=1):
        best = best.after(epoch, fl.Metrics((accuracy(share), loss(cost)), samples), monitor)
        found.append(best.epoch)
    return found


@pytest.mark.parametrize("monitor", ["auto", "accuracy"])
def test_a_tie_in_accuracy_goes_to_the_lower_loss_and_then_to_the_earlier_epoch(
    monitor: str,
) -> None:
    assert kept([(0.9, 0.5), (0.9, 0.4), (0.9, 0.4), (0.9, 0.6)], monitor=monitor) == [1, 2, 2, 2]


def test_accuracies_that_few_samples_cannot_tell_apart_are_ties_where_no_metric_was_asked_for() -> (
    None
):
    epochs = [(0.96, 0.5), (0.94, 0.3)]  # one sample of 50 is 0.02, half a standard error 0.014
    assert kept(epochs) == [1, 2]
    assert kept([(0.96, 0.5), (0.92, 0.3)]) == [1, 1]
    assert kept(epochs, samples=5000) == [1, 1]
    assert kept(epochs, monitor="accuracy") == [1, 1]


def test_ties_do_not_lead_step_by_step_away_from_the_best_accuracy() -> None:
    assert kept([(0.96, 0.5), (0.94, 0.4), (0.92, 0.3)]) == [1, 2, 2]


def test_a_much_better_accuracy_is_kept_whatever_its_loss() -> None:
    assert kept([(0.8, 0.3), (0.9, 0.5), (math.nan, 0.1)]) == [1, 2, 2]


def test_without_a_loss_there_are_no_ties() -> None:
    best = Best()
    for epoch, share in enumerate((0.95, 0.96, 0.96), start=1):
        best = best.after(epoch, fl.Metrics((accuracy(share),), 50), "auto")
    assert (best.epoch, best.value) == (2, 0.96)
