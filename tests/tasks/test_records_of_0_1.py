"""Runs that version 0.1 wrote are read, reported and gone on with.

`records_of_0_1/ended` is of a run of 4 epochs, `going` of the same one, interrupted after 2 batches
of its third epoch; both as that version wrote them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.records import RunFolder, read_records

RUNS = Path(__file__).parent / "records_of_0_1"
OPTIONS = {"epochs": 4, "batch_size": 8, "lr": 0.05, "device": "cpu", "monitor": "loss"}


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    fl.freeze(model, "0")
    return model


def data(count: int, seed: int) -> TensorDataset:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def test_an_ended_run_is_read_with_metrics_by_name() -> None:
    found = read_records(RunFolder(RUNS / "ended"))
    written = json.loads((RUNS / "ended" / "result.json").read_text())
    assert found.result is not None
    assert found.result.metrics == {n: written[n] for n in ("loss", "accuracy", "macro_f1")}
    assert [line["f1"] for line in written["per_class"]] == [c.f1 for c in found.result.per_class]
    assert found.result.phases[0].steps == 16
    assert found.best is not None
    assert found.best.validation["loss"] == written["loss"]
    assert [set(line.train) for line in found.epochs] == [{"loss", "accuracy"}] * 4


def test_an_interrupted_run_goes_on_to_the_same_metrics(tmp_path: Path) -> None:
    shutil.copytree(RUNS / "going", tmp_path / "run")
    run = fl.fit(
        net(),
        data(26, 1),
        data(12, 2),
        out=tmp_path / "run",
        resume=True,
        features="off",
        **OPTIONS,  # type: ignore[arg-type]  # each of its kind
    )
    lines = (RUNS / "ended" / "metrics.jsonl").read_text().splitlines()
    found = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "samples_per_second")
    for line, other in zip(map(json.loads, lines), map(json.loads, found), strict=True):
        told, now = (
            {n: v for n, v in one.items() if not n.endswith(timed)} for one in (line, other)
        )
        assert now == pytest.approx(told, rel=1e-4)
    assert run.best.validation.per_class[1].samples == 9


def test_an_ended_run_is_reported() -> None:
    page = fl.open_run(RUNS / "ended").report().page
    assert "Macro F1" in page
    assert "95 % interval" in page
