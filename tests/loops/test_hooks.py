"""Hooks see a run and may stop it; a run that was stopped is whole, proven and can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.engine import Training
from phased_net import HEAD, HEAD_AGAIN, net, rows

NECK = fl.Phase(name="neck", train="neck | head", epochs=3, lr=0.02)
PLAN = fl.Plan([HEAD, NECK, HEAD_AGAIN])


class StopAfter(fl.Hook):
    """Stops when so many epochs or steps of the whole run are done."""

    def __init__(self, *, epochs: int = 0, steps: int = 0) -> None:
        self.epochs, self.steps, self.seen = epochs, steps, 0

    def on_step(self, training: Training) -> None:
        self.seen += 1
        if self.seen == self.steps:
            training.stop("enough steps")

    def on_epoch(self, training: Training) -> None:
        if len(training.history) == self.epochs:
            training.stop("enough epochs")


def fitted(model: nn.Module, *hooks: fl.Hook, **options: Any) -> fl.Run:
    options = {"plan": PLAN, "batch_size": 8, "precision": "exact", "device": "cpu", **options}
    return fl.fit(model, rows(), rows(12, seed=2), features="off", hooks=hooks, **options)


def bits(model: nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(model).tensors)


def test_a_run_that_a_hook_stops_ends_whole(tmp_path: Path) -> None:
    run = fitted(net(), StopAfter(epochs=4), out=tmp_path / "run")
    assert [record.epoch for record in run.history] == [1, 2, 3, 4]
    assert run.proof.tensors > 0
    assert run.folder is not None
    for file in (run.folder.result, run.folder.report, run.folder.best, run.folder.last):
        assert file.is_file()
    checks = fl.open_run(tmp_path / "run").verify().checks
    assert "best/ holds no frozen tensor and was saved beside them" in checks


def test_the_record_of_the_phase_says_why_it_ended() -> None:
    run = fitted(net(), StopAfter(epochs=4))
    assert [record.ended for record in run.phases] == ["2 epochs", "stopped: enough epochs"]


def test_no_later_phase_begins_where_one_is_stopped_at_its_very_end() -> None:
    run = fitted(net(), StopAfter(epochs=2))
    assert [record.ended for record in run.phases] == ["2 epochs"]


def test_a_stop_within_an_epoch_comes_at_its_end() -> None:
    run = fitted(net(), StopAfter(steps=5))  # of four in an epoch
    assert [record.epoch for record in run.history] == [1, 2]


def test_a_stop_without_a_reason_is_said_to_be_by_a_hook() -> None:
    class Silent(fl.Hook):
        def on_epoch(self, training: Training) -> None:
            training.stop("")

    assert fitted(net(), Silent()).phases[-1].ended == "stopped: by a hook"


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_stopped_run_goes_on_to_the_bits_it_would_have_had(tmp_path: Path, epochs: int) -> None:
    whole, model, out = net(), net(), tmp_path / "run"
    expected = fitted(whole)
    fitted(model, StopAfter(epochs=epochs), out=out)
    model = net()
    run = fitted(model, out=out, resume=True)
    assert bits(model) == bits(whole)
    assert [record.train for record in run.history] == [r.train for r in expected.history]
    ends = ["2 epochs", "3 epochs", "1 epoch"]
    assert [record.ended for record in run.phases] == ends
    assert [record.epochs for record in run.phases] == [2, 3, 1]


def test_an_interrupt_by_a_hook_leaves_a_run_to_resume_and_no_result(tmp_path: Path) -> None:
    class Deadline(fl.Hook):
        def on_step(self, training: Training) -> None:
            if training.position.epochs == 1 and training.position.batches == 2:
                raise KeyboardInterrupt

    whole, model, out = net(), net(), tmp_path / "run"
    fitted(whole)
    with pytest.raises(KeyboardInterrupt):
        fitted(net(), Deadline(), out=out)
    assert not (out / "result.json").exists()
    fitted(model, out=out, resume=True)
    assert bits(model) == bits(whole)


def test_hooks_are_called_in_the_order_in_which_they_were_given() -> None:
    called = []

    class Named(fl.Hook):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_phase(self, training: Training) -> None:  # noqa: ARG002
            called.append(self.name)

    fitted(net(), Named("first"), Named("second"), plan=fl.Plan([HEAD]))
    assert called == ["first", "second"]
    assert torch.is_grad_enabled()
