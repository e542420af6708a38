"""What ends a run, and what is decided, is one for all processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fits import Fitted, Net, fit_net, fitted, net, pictures
from ranks import ends_of, on_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, random_split

import frostline as fl
from frostline.errors import TrainingError
from frostline.world import world_here
from small_world import call


class OnOne(fl.Hook):
    """Does something on one process alone, after an epoch or a step."""

    def __init__(self, what: str) -> None:
        self.what = what if world_here("cpu").rank == 1 else ""

    def on_epoch(self, training: fl.Training) -> None:
        if self.what == "stop":
            training.stop("enough")
        if self.what == "raise":
            raise OSError("the disk of the second is full")

    def on_step(self, training: fl.Training) -> None:
        if self.what == "drift" and training.position.phase_steps == 3:
            training.model.stem[0].weight.data += 1  # type: ignore[union-attr, operator]
        if self.what == "interrupt":
            raise KeyboardInterrupt


def fit_hooked(what: str) -> Fitted:
    return fit_net("head", hooks=[OnOne(what)])


def test_a_hook_that_stops_one_process_stops_all() -> None:
    for found in on_ranks(fit_hooked, "stop"):
        assert found.ended == ["stopped: enough"]
        assert len(found.losses) == 1


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("raise", "TrainingError: process 1: OSError: the disk of the second is full"),
        ("drift", "DriftError: process 1: one thing that Net was to keep frozen did not"),
        ("interrupt", "KeyboardInterrupt: process 1 was interrupted"),
    ],
)
def test_what_happens_to_one_process_ends_all_with_its_words(what: str, told: str) -> None:
    first, second = ends_of(fit_hooked, what)
    assert told in first.error
    assert second.error
    assert "process 1: process 1" not in first.error


def fit_minutes() -> Fitted:
    phases = [
        fl.Phase(train="head", until=fl.Until(minutes=0.002)),
        fl.Phase(train="head", epochs=1),
    ]
    return fit_net(plan=fl.Plan(phases))


def test_a_phase_of_minutes_ends_at_one_step_in_all_processes() -> None:
    first, second = on_ranks(fit_minutes)
    assert first.ended == second.ended == ["0.002 minutes", "1 epoch"]
    assert first.losses == second.losses


def fit_other_base() -> Fitted:
    model = net()
    with torch.no_grad():
        model.stem[0].bias += world_here("cpu").rank
    fl.train_only(model, "head")
    return fitted(fl.fit(model, pictures(9, 1), pictures(5, 2), epochs=1, device="cpu"))


def test_other_frozen_weights_in_one_process_are_an_error() -> None:
    for ended in ends_of(fit_other_base):
        assert "DriftError" in ended.error
        assert (
            "1 frozen tensors of process 1 are not those of process 0: stem.0.bias" in ended.error
        )


def fit_other_head() -> Fitted:
    model = net()
    torch.manual_seed(world_here("cpu").rank)
    model.head.reset_parameters()
    fl.train_only(model, "head")
    options: dict[str, Any] = {"epochs": 1, "device": "cpu", "features": "off"}
    return fitted(fl.fit(model, pictures(9, 1), pictures(5, 2), **options))


def test_a_head_that_each_process_made_itself_is_the_first_ones() -> None:
    first, second = on_ranks(fit_other_head)
    assert first.losses == second.losses
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])


class Choosing(Net):
    """Its second head is never used; its top only while it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.calls, self.skips = nn.Linear(12, 3), 0, False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        values = self.top(self.stem(x))
        return self.head(values.detach() * 0 if self.skips and self.calls > 2 else values)


def fit_choosing(skips: bool) -> tuple[Fitted, list[str]]:
    torch.manual_seed(0)
    model, told = Choosing(), list[str]()
    model.skips = skips
    fl.train_only(model, "top | head | spare")

    class Told(fl.Hook):
        def on_notice(self, text: str, /) -> None:
            told.append(text)

    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "device": "cpu", "features": "off"}
    run = fl.fit(model, pictures(16, 1), pictures(5, 2), hooks=[Told()], **options)
    return fitted(run), told


def test_what_no_batch_reaches_is_said_and_left_out() -> None:
    for found, told in on_ranks(fit_choosing, False):
        assert any("2 trainable tensors got no gradient" in line for line in told)
        torch.manual_seed(0)
        assert torch.equal(found.tensors["spare.weight"], Choosing().spare.weight)


def test_layers_that_some_batches_leave_out_are_refused() -> None:
    for ended in ends_of(fit_choosing, True):
        assert "got a gradient from some batches and none from others" in ended.error


def test_what_serves_one_process_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes, and FrozenClassifier works in one"):
        fl.FrozenClassifier(model="mobilenet_v2").fit(np.zeros((4, 3, 8, 8)), [0, 1, 0, 1])
    answer = call("demo")
    assert (answer.status, "the demo works in one" in answer.message) == (1, True)


def fit_other_data() -> None:
    rank = world_here("cpu").rank
    fl.train_only(model := net(), "head")
    train = random_split(pictures(30, 1), [20, 10], torch.Generator().manual_seed(rank))[0]
    fl.fit(model, train, pictures(5, 2), epochs=1, device="cpu", features="off")


def test_data_that_each_process_divided_otherwise_are_an_error() -> None:
    for ended in ends_of(fit_other_data):
        assert "DataError" in ended.error
        assert "the training data of process 1 are not those of process 0" in ended.error


def fit_shuffled() -> Fitted:
    """By loaders that shuffle, of which the validation data's draws after dropout has drawn."""
    loaders = (DataLoader(pictures(n, n), batch_size=8, shuffle=True) for n in (37, 19))
    fl.train_only(model := net(0.2), "head | top")
    return fitted(fl.fit(model, *loaders, epochs=2, device="cpu", features="off"))


def test_loaders_that_shuffle_give_all_processes_one_order() -> None:
    first, second = on_ranks(fit_shuffled)
    assert first.losses == second.losses
    assert first.metrics == second.metrics


def fit_sampled() -> None:
    data = pictures(16, 1)
    sampler: Any = DistributedSampler(data, num_replicas=2, rank=world_here("cpu").rank)
    fl.train_only(model := net(), "head")
    fl.fit(model, DataLoader(data, 4, sampler=sampler), data, epochs=1, device="cpu")


def test_a_loader_that_is_divided_already_is_refused() -> None:
    for ended in ends_of(fit_sampled):
        assert (
            "has a DistributedSampler, and processes share its batches here already" in ended.error
        )


def fit_compiled() -> None:
    fit_net("head", compile=True, sync_norm=True)


def test_norms_of_all_processes_are_not_compiled() -> None:
    for ended in ends_of(fit_compiled):
        assert "compile=True takes batch norms out of the hands of sync_norm=True" in ended.error
