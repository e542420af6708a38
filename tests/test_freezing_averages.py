"""Held norms come through weight averaging, whose helpers reset and recompute every batch norm."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import frostline as fl


def net() -> nn.Module:
    made = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    for norm in (made[0][1], made[1]):
        norm.running_mean += 3
        norm.running_var += 4
        norm.num_batches_tracked += 5
    fl.freeze(made, "0")
    return made


def statistics(norm: nn.Module) -> list[float]:
    return [float(norm.get_buffer(n).sum()) for n in norm._buffers]


KEPT = [12.0, 20.0, 5.0]


def averaged(model: nn.Module) -> nn.Module:
    average = AveragedModel(model)
    average.update_parameters(model)
    inner: nn.Module = average.module
    return inner


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("way", [lambda model: model, averaged, copy.deepcopy, saved])
def test_a_held_norm_comes_through_update_bn_while_others_are_computed_anew(
    way: Callable[[nn.Module], nn.Module],
) -> None:
    model: Any = way(net())
    update_bn([torch.randn(16, 4)], model)
    assert statistics(model[0][1]) == KEPT
    assert model[1].num_batches_tracked == 1


def reset_as_trainers_do(model: nn.Module) -> dict[nn.Module, float | None]:
    """As Lightning's StochasticWeightAveraging does before its last epoch."""
    momenta = {}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for name, fill in (
                ("running_mean", torch.zeros_like),
                ("running_var", torch.ones_like),
            ):
                setattr(module, name, fill(module.get_buffer(name)))
            momenta[module] = module.momentum
            module.momentum = None
            module.num_batches_tracked *= 0
    return momenta


@pytest.mark.parametrize("way", [lambda model: model, copy.deepcopy, saved])
def test_a_held_norm_comes_through_a_reset_by_assignment(
    way: Callable[[nn.Module], nn.Module],
) -> None:
    model: Any = way(net())
    assert len(reset_as_trainers_do(model)) == 2
    model.train()(torch.randn(16, 4))
    assert statistics(model[0][1]) == KEPT
    assert model[1].num_batches_tracked == 1


def test_the_proof_holds_after_the_statistics_of_others_were_computed_anew() -> None:
    model: Any = net()
    frozen = fl.freeze(model, "0")
    update_bn([torch.randn(16, 4)], model)
    reset_as_trainers_do(model)
    assert frozen.verify().tensors == 7


def test_a_thawed_norm_is_reset_again() -> None:
    model: Any = net()
    fl.thaw(model, "0")
    before = set(nn.BatchNorm1d(4).__dict__)
    assert set(model[0][1].__dict__) == before
    model[0][1].reset_running_stats()
    assert statistics(model[0][1]) == [0.0, 4.0, 0.0]


def test_statistics_that_are_no_reset_are_assigned_and_found_by_the_proof() -> None:
    model: Any = net()
    frozen = fl.freeze(model, "0")
    model[0][1].running_mean = torch.full((4,), 7.0)
    with pytest.raises(fl.DriftError, match=r"0\.1\.running_mean: moved by up to 4"):
        frozen.verify()


def test_a_held_norm_still_loads_and_moves() -> None:
    model: Any = net()
    other = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    assert statistics(model[0][1]) == [4.0, 4.0, 1.0]
    assert model.double()[0][1].running_mean.dtype == torch.float64


def test_statistics_of_a_new_model_are_loaded_by_assignment_like_any_other() -> None:
    model: Any = net()
    fresh = {f"0.1.{name}": value for name, value in nn.BatchNorm1d(4).state_dict().items()}
    model.load_state_dict({**model.state_dict(), **fresh}, assign=True)
    assert statistics(model[0][1]) == [0.0, 4.0, 0.0]
