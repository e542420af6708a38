"""`fl.sweep`: members are their own single runs, losers are dropped, the winner is a run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_world import BOUND, CLASSES, TRAIN, VAL, Net, furthest, net, rows, single, swept
from torch import nn

import frostline as fl
from frostline.features import Computing
from frostline.sweeps import Member
from frostline.sweeps.ranking import leading, rungs
from frostline.tasks import Metric, Metrics


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def found(store: Path) -> fl.Sweep:
    """Two rates, two decays and two heads, all trained to the end."""
    return swept(store, lr=[3e-3, 3e-2], weight_decay=[0, 0.3], heads=[(), 12], drop=False)


def test_each_member_ends_within_the_bound_of_its_own_run(found: fl.Sweep, store: Path) -> None:
    assert len(found.members) == 8
    assert furthest(found, store) < BOUND


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": [0.03, 0.3], "weight_decay": [0, 0.01]},
        {"optimizer": "sgd", "momentum": 0.0, "lr": [0.1, 0.3]},
        {"optimizer": "adam", "lr": [1e-3, 1e-2], "weight_decay": [0, 0.01]},
        {"clip_norm": 0.1, "label_smoothing": 0.1, "lr": [1e-3, 1e-2]},
        {"schedule": "constant", "warmup": 2.0, "lr": [1e-3, 1e-2], "precision": "exact"},
    ],
)
def test_so_does_one_of_another_recipe(options: dict[str, Any], store: Path) -> None:
    found = swept(store, drop=False, **options)
    rest = {n: v for n, v in options.items() if n not in ("lr", "weight_decay")}
    assert furthest(found, store, **rest) < BOUND


@pytest.mark.parametrize("seeds", [[0, 1, 2], [0]])
def test_a_member_sees_the_batches_and_the_dropout_of_its_own_run(
    seeds: list[int], store: Path
) -> None:
    """Three seeds are one stack, in which each member has its own batches and masks."""
    found = swept(store, lr=[1e-2, 3e-2], heads=[12], dropout=[0.1, 0.6], seeds=seeds, drop=False)
    assert {member.setting.seed for member in found.members} == set(seeds)
    assert len({member.history[-1]["loss"] for member in found.members}) == 4 * len(seeds)
    assert furthest(found, store) < BOUND


def test_the_winner_is_a_run_to_the_bits_of_its_own(store: Path, tmp_path: Path) -> None:
    model = net()
    found = swept(store, model, lr=[1e-3, 3e-2], heads=[(), 12], out=tmp_path / "run")
    alone = single(store, found.winner.setting)
    assert found.run.model is model
    assert fl.fingerprint(model) == fl.fingerprint(alone.model)
    assert found.run.best.validation == alone.best.validation
    assert str(found.run.proof) == "2 frozen tensors (864 B) are bit for bit as they were"
    loaded = net(nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, CLASSES)))
    if found.winner.setting.head == ():
        loaded = net()
    fl.load_delta(loaded, tmp_path / "run" / "best" / "delta.safetensors")
    assert fl.fingerprint(loaded) == fl.fingerprint(model)


def test_features_are_computed_once_for_all(tmp_path: Path, monkeypatch: Any) -> None:
    counted: list[int] = []
    plain = Computing.rows

    def counting(compute: Computing, samples: Any, collate: Any) -> Any:
        counted.append(len(samples))
        return plain(compute, samples, collate)

    monkeypatch.setattr(Computing, "rows", counting)
    swept(tmp_path, lr=[1e-3, 1e-2], heads=[(), 12], seeds=[0, 1], epochs=2)
    assert sum(counted) == len(TRAIN) + len(VAL)


def test_losers_are_dropped_and_the_winner_stays(store: Path) -> None:
    options = {"lr": [1e-4, 1e-3, 1e-2, 1e-1], "weight_decay": [0, 0.1], "epochs": 10}
    every, fewer = swept(store, drop=False, **options), swept(store, **options)
    assert fewer.winner.setting == every.winner.setting
    assert sorted(member.epochs for member in fewer.members) == [2, 2, 2, 3, 4, 5, 10, 10]
    last = next(m for m in every.members if m.number == fewer.winner.number)
    assert [h["loss"] for h in last.history] == pytest.approx(
        [h["loss"] for h in fewer.winner.history], rel=BOUND
    )


def test_those_go_on_that_have_the_lowest_loss_now(store: Path) -> None:
    found = swept(store, lr=[1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0], epochs=10, dropout=[0.0, 0.6])

    def losses(member: Member, epoch: int) -> float:
        return min(one["loss"] for one in member.history[max(0, epoch - 3) : epoch])

    for epoch, keep in rungs(10, 12).items():
        going = [m for m in found.members if m.epochs >= epoch]
        lowest = sorted(going, key=lambda m: losses(m, epoch))
        left = {m.number for m in found.members if m.epochs > epoch}
        assert left == {m.number for m in lowest[:keep]}


def test_rungs_keep_members_times_epochs_the_same() -> None:
    assert rungs(16, 32) == {3: 22, 4: 16, 5: 13, 6: 11, 7: 10, 8: 8, 10: 7, 11: 6, 13: 5}
    assert rungs(8, 16) == {2: 8, 3: 6, 4: 4, 6: 3}
    assert rungs(10, 4) == {2: 3, 3: 2, 5: 1}


def test_rungs_leave_few_members_and_epochs_alone() -> None:
    assert rungs(10, 3) == {}
    assert rungs(1, 32) == {}
    assert rungs(2, 32) == {1: 8}


def course(*losses: float, accuracy: float = 0.5) -> list[Metrics]:
    """Of a member, after each epoch."""
    return [
        Metrics((Metric("accuracy", accuracy), Metric("loss", loss, "lower")), 9) for loss in losses
    ]


def test_the_loss_now_decides_who_goes_on() -> None:
    past, slow = course(0.3, 0.9, 0.9, 0.9, accuracy=0.9), course(0.9, 0.8, 0.7, 0.5, accuracy=0.6)
    assert leading({0: past, 1: slow}, "auto") == [1, 0]
    assert leading({0: past, 1: slow}, "loss") == [1, 0]
    assert leading({0: past, 1: slow}, "accuracy") == [0, 1]
    unknown = {0: past, 1: slow, 2: course(*[0.1] * 4, accuracy=math.nan)}
    assert leading(unknown, "accuracy") == [0, 1, 2]


def test_members_that_are_alike_so_far_count_once() -> None:
    first, twin, other = course(0.8, 0.5), course(0.8, 0.501), course(0.9, 0.7)
    parted = course(0.9, 0.5005)  # now as the first one, but not before
    assert leading({0: twin, 1: other, 2: first}, "auto") == [2, 1, 0]
    assert leading({0: twin, 1: other, 2: first, 3: parted}, "auto") == [2, 3, 1, 0]
    assert leading({3: first, 0: first}, "auto") == [0, 3]


def test_a_member_whose_loss_is_no_number_falls_out_alone(store: Path) -> None:
    options = {"optimizer": "sgd", "lr": [1e-2, 1e30], "heads": [12], "drop": False}
    found = swept(store, **options)
    winner, lost = found.members
    assert (winner.failed, winner.epochs) == ("", 5)
    assert lost.failed.startswith("the loss was no number in epoch ")
    assert winner.setting.lr == 1e-2
    assert "Failed    2: the loss was no number in epoch " in str(found)
    alone = swept(store, **{**options, "lr": [1e-2]})
    assert [h["loss"] for h in winner.history] == pytest.approx(
        [h["loss"] for h in alone.winner.history], rel=BOUND
    )


def test_that_none_stays_a_number_is_said(store: Path) -> None:
    with pytest.raises(fl.TrainingError, match=r"no member's loss stayed a number.*`lr`"):
        swept(store, optimizer="sgd", lr=[1e30, 1e31], heads=[12])


def test_what_cannot_be_stacked_is_trained_one_after_the_other(store: Path) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    found = swept(store, net(head), lr=[1e-3, 1e-2], epochs=2)
    assert not any(member.together for member in found.members)
    assert "Singly 2 of 2 members, one after the other: it holds batch_norm" in " ".join(
        str(found).split()
    )
    for member in found.members:
        torch.manual_seed(0)
        same = nn.Sequential(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        run = single(store, member.setting, net(same), epochs=2)
        assert member.history == tuple(record.validation for record in run.history)


def test_so_is_another_task(store: Path) -> None:
    data = rows(40, 3)
    values = torch.utils.data.TensorDataset(data.tensors[0], data.tensors[0][:, :1] * 2)
    model = net(nn.Linear(24, 1))
    asked: dict[str, Any] = {"epochs": 2, "features": store, "device": "cpu", "batch_size": 16}
    found = fl.sweep(model, values, values, lr=[1e-3, 1e-2], task="regression", **asked)
    assert "only a classification is trained together" in " ".join(str(found).split())
    assert found.winner.metrics is not None
    assert found.winner.setting.lr == 1e-2


def test_a_table_stays_in_80_columns_whatever_varies(store: Path) -> None:
    found = swept(
        store, lr=[1e-3, 1e-2], weight_decay=[0, 0.1], heads=[12, 8], dropout=[0, 0.5], seeds=[0, 1]
    )
    lines = str(found).splitlines()
    assert len(found.members) == 32
    assert max(map(len, lines)) <= 80
    heads = "      head   drop      lr   decay   seed   kept   accuracy        95 %    loss"
    assert lines[0].split() == heads.split()
    assert any(line.startswith("Best      head ") for line in lines)
    assert any(line.startswith("Chance    60 samples cannot tell it from 2") for line in lines)


def test_members_stand_in_the_run_folder(store: Path, tmp_path: Path) -> None:
    found = swept(store, lr=[1e-3, 1e-2], heads=[(12, 8)], out=tmp_path / "run")
    document = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [one["lr"] for one in document["members"]] == [m.setting.lr for m in found.members]
    with (tmp_path / "run" / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["head"] for line in lines] == ["12-8", "12-8"]
    first = found.winner
    assert first.metrics is not None
    assert float(lines[0]["accuracy"]) == first.metrics["accuracy"]
    assert float(lines[0]["low"]) < first.metrics["accuracy"] < float(lines[0]["high"])
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr": []}, "`lr` is empty, so there is nothing to try"),
        ({"lr": [1e-3, -1]}, r"lr=-1\.0: input should be greater than 0"),
        ({"lr": "fast"}, r"lr is a str\. Give numbers"),
        ({"lr": ["1e-3"]}, "lr holds a str"),
        ({"weight_decay": [-0.1]}, r"weight_decay=-0\.1: input should be greater than"),
        ({"heads": []}, "`heads` is empty"),
        ({"heads": 12}, "heads is an int. Give hidden widths for each head"),
        ({"heads": [0]}, "hidden width is 0; it must be a whole number from 1"),
        ({"dropout": [1.0]}, "dropout=1: a probability from 0 to below 1"),
        ({"seeds": [-1]}, "seed=-1: input should be greater than or equal to 0"),
        ({"plan": fl.Plan([fl.Phase(epochs=1)])}, "a sweep trains in one phase"),
        ({"lr": [1e-3], "epoch": 3}, r"there is no option 'epoch' \(nearest: 'epochs'\)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options: dict[str, Any], told: str) -> None:
    with pytest.raises(fl.ConfigError, match=told):
        fl.sweep(net(), TRAIN, VAL, **options)


def test_dropout_that_is_nowhere_is_refused(store: Path) -> None:
    class Plain(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    model = Plain()
    fl.freeze(model, "body")
    with pytest.raises(fl.ConfigError, match="no dropout above the frost line"):
        swept(store, model, dropout=[0.1, 0.5])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(fl.TrainingError, match=r"2 processes, and a sweep works in one"):
        fl.sweep(net(), TRAIN, VAL, lr=[1e-3])
    monkeypatch.undo()


def test_a_folder_that_is_taken_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    with pytest.raises(fl.OutputError, match="choose another `out`"):
        swept(tmp_path / "features", lr=[1e-3], out=tmp_path / "run")
    assert not (tmp_path / "features").exists()
