"""`frozen_part`: all that is frozen now, by whichever calls or by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl
from blocks_net import Net, state, wanting
from frostline.freezing import frozen_part, modes


def by_hand(part: nn.Module) -> None:
    for parameter in part.parameters():
        parameter.requires_grad = False


def test_it_covers_what_several_calls_froze() -> None:
    net = Net()
    fl.freeze(net, "body.0")
    fl.freeze(net, "body.1.0")
    assert frozen_part(net).fingerprint == fl.fingerprint(net, "body.0 | body.1.0")


def test_what_was_frozen_by_hand_is_held_in_eval_too() -> None:
    net = Net()
    by_hand(net.body)
    frozen_part(net)
    assert not any(module.training for module in net.train().body.modules())


def test_what_was_frozen_by_hand_is_proved_with_its_statistics() -> None:
    net = Net()
    by_hand(net.body)
    frozen = frozen_part(net)
    net.body[0][1].running_mean += 1
    with pytest.raises(fl.DriftError, match=r"body\.0\.1\.running_mean: moved by up to 1"):
        frozen.verify()


def test_statistics_without_parameters_go_with_the_part_frozen_by_hand() -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout())
    net = nn.Sequential(body, nn.Linear(2, 2))
    by_hand(body)
    assert frozen_part(net).verify().tensors == 5
    assert not any(module.training for module in net.train()[0].modules())


def test_statistics_left_free_by_a_freeze_stay_free() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), nn.Linear(2, 2)
    )
    fl.freeze(net, "0.0")
    frozen_part(net)
    assert net.train()[0][1].training


def test_an_adapting_norm_keeps_adapting() -> None:
    net = Net()
    fl.freeze(net, "body", norm="adapt")
    before = net.body[0][1].running_mean.clone()
    frozen = frozen_part(net)
    net.train()(torch.randn(4, 4) + 1)
    assert not torch.equal(net.body[0][1].running_mean, before)
    frozen.verify()


def test_a_model_of_which_nothing_is_frozen_is_left_as_it_is() -> None:
    net = Net()
    before = state(net)
    assert frozen_part(net).verify().tensors == 0
    assert state(net) == before


def test_thawing_it_thaws_what_was_frozen_by_hand() -> None:
    net = Net()
    by_hand(net.body)
    frozen_part(net).thaw()
    assert len(wanting(net)) == 10


def test_a_shared_dropout_is_refused_and_the_model_left_as_it_was() -> None:
    dropout = nn.Dropout()
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), dropout), dropout, nn.Linear(2, 2))
    by_hand(net[0])
    before = state(net)
    with pytest.raises(fl.FreezeError, match="one Dropout serves the frozen part"):
        frozen_part(net)
    assert state(net) == before


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(fl.FreezeError, match="wrapped in DataParallel"):
        frozen_part(nn.DataParallel(Net()))


def held_though_trainable(net: nn.Module) -> list[str]:
    return [path for path, _ in modes.held_though_trainable(net)]


def test_parts_unfrozen_by_hand_are_named_as_held_by_their_outermost_modules() -> None:
    net = Net()
    fl.freeze(net, "body")
    assert held_though_trainable(net) == []
    net.body[0][1].requires_grad_(True)
    assert held_though_trainable(net) == ["body"]
    fl.thaw(net, "body")
    assert held_though_trainable(net) == []


def test_a_norm_unfrozen_by_hand_in_a_trainable_part_is_named_as_held() -> None:
    net = Net()
    fl.freeze(net, "kind:norm")
    for parameter in net.body[0][1].parameters():
        parameter.requires_grad_(True)
    assert held_though_trainable(net) == ["body.0.1"]


def test_a_norm_frozen_in_half_is_rightly_held() -> None:
    net = Net()
    fl.freeze(net, "body.0.1.weight")
    assert modes.is_held(net.body[0][1])
    assert held_though_trainable(net) == []


def test_a_whole_model_unfrozen_by_hand_is_named_as_its_root() -> None:
    net = Net()
    fl.freeze(net, "all", leaving="nothing")
    net.requires_grad_(True)
    assert held_though_trainable(net) == [""]
