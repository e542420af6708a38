"""Numbers that rounding or equal values would make wrong are refused, or left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.records.certainty import r2_interval


@pytest.mark.parametrize(("offset", "is_refused"), [(1.7e9, True), (1e4, False)])
def test_targets_that_float32_does_not_tell_apart_are_refused(
    offset: float, is_refused: bool
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(40, 3)
    data = TensorDataset(inputs, offset + torch.round(inputs[:, 0].double() * 20))
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    fl.freeze(net, "0")
    if is_refused:
        with pytest.raises(fl.DataError, match="Subtract what is common to them"):
            fl.fit(net, data, data, task="regression", epochs=1, features="off")
    else:
        assert fl.fit(net, data, data, task="regression", epochs=1, features="off").history


def test_resamples_of_equal_targets_say_nothing_of_r2() -> None:
    true = np.full((20, 1), 0.1)
    true[7] = 0.9
    middle, low, high = r2_interval(true, true + 0.05)
    assert -1 < low <= middle <= high <= 1
    constant = np.hstack([true, np.zeros((20, 1))])  # of which R2 has no meaning
    assert r2_interval(constant, constant + 0.05) == (middle, low, high)


def test_thresholds_are_chosen_in_double_precision_and_lie_between_0_and_1() -> None:
    task = fl.MultiLabel(1, thresholds="best")
    truth = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    found = task.summarise(torch.tensor([[20.0], [18.0], [17.0], [-3.0]]), truth)
    assert found.per_label[0].f1 == 1
    for logits in ([45.0, 44.0, 43.0, -3.0], [-800.0, -800.0, -900.0, -900.0]):
        metrics = task.summarise(torch.tensor(logits).view(4, 1), truth)
        (threshold,) = task.settled(metrics).settings().thresholds
        assert 0 < threshold < 1


def test_a_label_that_all_samples_have_is_learnt_with_balanced_weights() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(60, 3)
    labels = torch.stack([(inputs[:, 0] > 0).float(), torch.ones(60)], 1)
    data, net = TensorDataset(inputs, labels), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    fl.freeze(net, "0")
    with torch.no_grad():
        net[1].bias.fill_(-1.0)
    options = {"epochs": 30, "lr": 0.1, "features": "off", "class_weights": "balanced"}
    fl.fit(net, data, data, task="multilabel", **options)
    assert float(net.eval()(inputs)[:, 1].detach().sigmoid().mean()) > 0.6
