"""Rows are computed and read with the tensors of the cut's key, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.features import FeatureData, PrefixedBatches, computing, filling, in_form
from frostline.tuning import Form

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(64) % 3


class Net(nn.Module):
    """`last` and `calls` are written by each forward, and tell nothing of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(  # wide, so that its answer is worth keeping
            nn.Linear(8, 256), nn.BatchNorm1d(256), nn.Tanh(), nn.Linear(256, 16)
        )
        self.head = nn.Linear(16, 3)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x * self.scale))
        return out


class Leaving(Net):
    """Each forward leaves a number and a tensor behind that the next does not read."""

    calls = 0
    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x
        return super().forward(x)


def cut_net(at: str | None = None, model: nn.Module | None = None) -> fl.Cut:
    model = model or Net()
    fl.freeze(model, "backbone")
    return fl.cut(model, INPUTS[:4], at=at)


def extract(
    made: fl.Cut, store: Path, count: int = 64, progress: Callable[[int, int], None] | None = None
) -> FeatureData:
    data = TensorDataset(INPUTS[:count], LABELS[:count])
    kept = fl.FeatureStore(store)
    return fl.extract(made, data, kept, precision="exact", batch_size=8, progress=progress)


def assert_right(store: Path, at: str | None) -> None:
    """A correct model with a fresh cut reads right rows from this store."""
    made = cut_net(at)
    found = extract(made, store).rows.gather(torch.arange(64))[0]
    assert torch.allclose(found, made.prefix(INPUTS)[0], atol=1e-5)
    assert fl.FeatureStore(store).verify() == ()


def weight_of(made: fl.Cut) -> nn.Parameter:
    return made.suffix.model.get_parameter("backbone.0.weight")


def write(made: fl.Cut) -> None:
    weight_of(made).data += 1


def load(made: fl.Cut) -> None:
    other = {n: t + 1 for n, t in made.suffix.model.state_dict().items()}
    made.suffix.model.load_state_dict(other)


def assign(made: fl.Cut) -> None:
    other = {n: t.clone() + 1 for n, t in made.suffix.model.state_dict().items()}
    made.suffix.model.load_state_dict(other, assign=True)
    fl.freeze(made.suffix.model, "backbone")


def write_buffer(made: fl.Cut) -> None:
    made.suffix.model.get_buffer("backbone.1.running_mean").add_(1)


def replace(made: fl.Cut) -> None:
    made.suffix.model.get_submodule("backbone")[0] = nn.Linear(8, 256).requires_grad_(False)


CHANGES = [write, load, assign, write_buffer, replace]


@pytest.mark.parametrize("at", [None, "backbone"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_old_cut_neither_reads_nor_writes_rows_for_a_changed_model(
    tmp_path: Path, change: Callable[[fl.Cut], None], at: str | None
) -> None:
    made = cut_net(at)
    extract(made, tmp_path, 32)
    change(made)
    with pytest.raises(fl.CutError, match=r"backbone\.[01]\.\w+.* changed since.*; cut again"):
        extract(made, tmp_path)
    with pytest.raises(fl.CutError, match="changed since"):
        extract(made, tmp_path, 32)  # which are all stored
    assert [entry.rows for entry in fl.FeatureStore(tmp_path).ls()] == [32]
    assert_right(tmp_path, at)


def test_an_attribute_of_a_cut_behind_a_named_submodule_counts_as_its_tensors_do(
    tmp_path: Path,
) -> None:
    made = cut_net("backbone")
    made.suffix.model.scale = 2.0  # type: ignore[assignment]  # no tensor
    with pytest.raises(fl.CutError, match="its modules, their attributes or their code is changed"):
        extract(made, tmp_path)


@pytest.mark.parametrize("at", [None, "backbone"])
def test_a_change_midway_hides_the_rows_that_were_computed_since_the_last_proof(
    tmp_path: Path, at: str | None
) -> None:
    made = cut_net(at)

    def change(done: int, _: int) -> None:
        if done == 32:
            write(made)

    with pytest.raises(fl.CutError, match=r"backbone\.0\.weight is changed since"):
        extract(made, tmp_path, progress=change)
    assert all(entry.rows <= 32 for entry in fl.FeatureStore(tmp_path).ls())
    assert_right(tmp_path, at)


def test_a_change_that_is_followed_by_another_failure_hides_rows_too(tmp_path: Path) -> None:
    made = cut_net()

    def change_and_fail(done: int, _: int) -> None:
        if done == 16:
            write(made)
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, fl.CutError)):
        extract(made, tmp_path, progress=change_and_fail)
    assert_right(tmp_path, None)


def test_rows_that_wait_for_a_proof_are_kept_when_an_extraction_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_PROOF_SHARE", -1.0)  # no batch is published by itself

    def stop(done: int, _: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(cut_net(), tmp_path, progress=stop)
    assert [entry.rows for entry in fl.FeatureStore(tmp_path).ls()] == [40]


def test_many_rows_do_not_wait_in_memory_for_a_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_PROOF_SHARE", -1.0)
    monkeypatch.setattr(filling, "_MOST_BYTES", 1)
    seen = []

    def look(_: int, __: int) -> None:
        seen.append(sum(entry.rows for entry in fl.FeatureStore(tmp_path).ls()))

    extract(cut_net(), tmp_path, progress=look)
    assert seen == [8, 16, 24, 32, 40, 48, 56, 64]


def test_copies_that_a_form_made_of_other_tensors_are_refused(tmp_path: Path) -> None:
    made = cut_net()
    before = weight_of(made).clone()
    device = torch.device("cpu")
    compute = in_form(made, Form("bfloat16"), batch_size=8, device=device)
    write(made)
    with pytest.raises(fl.CutError, match="changed since"):
        compute(INPUTS[:8])  # here the copies are made
    weight_of(made).data.copy_(before)
    data, store = TensorDataset(INPUTS, LABELS), fl.FeatureStore(tmp_path)
    found = fl.extract(made, data, store, compute=compute).rows.gather(torch.arange(64))[0]
    assert torch.allclose(found, made.prefix(INPUTS)[0], rtol=0.1, atol=0.1)
    write(made)  # what was copied is right, and yet not the model's any more
    with pytest.raises(fl.CutError, match="changed since"):
        fl.extract(made, data, store, compute=compute)


def test_no_form_is_chosen_by_tensors_of_another_key(tmp_path: Path) -> None:
    made = cut_net()

    def samples() -> Tensor:
        write(made)
        return INPUTS

    from frostline.features import Decisions

    with pytest.raises(fl.CutError, match="changed since"):
        computing(
            made,
            samples,
            precision="auto",
            batch_size=8,
            device=torch.device("cpu"),
            decisions=Decisions(tmp_path),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [None, "backbone"])
def test_a_frozen_tensor_that_was_thawed_says_to_cut_again(tmp_path: Path, at: str | None) -> None:
    made = cut_net(at)
    extract(made, tmp_path)
    fl.thaw(made.suffix.model, "backbone.0")
    told = r"backbone\.0\.weight, backbone\.0\.bias are trainable now.*cut again"
    with pytest.raises(fl.CutError, match=told):
        extract(made, tmp_path)


def test_batches_that_the_prefix_computes_as_they_come_are_of_the_cut(tmp_path: Path) -> None:
    made = cut_net()
    stored = extract(made, tmp_path)
    device = torch.device("cpu")
    compute = computing(made, tuple, precision="exact", batch_size=8, device=device)
    batches = PrefixedBatches(stored.batches(batch_size=8, shuffle=False), compute)
    fl.thaw(made.suffix.model, "backbone")
    with pytest.raises(fl.CutError, match=r"trainable now.*cut again"):
        next(batches.epoch(0))


@pytest.mark.parametrize("at", [None, "backbone"])
def test_what_changes_no_feature_needs_no_new_cut(tmp_path: Path, at: str | None) -> None:
    made = cut_net(at)
    extract(made, tmp_path, 32)
    made.suffix.model.eval()
    same = {name: tensor.clone() for name, tensor in made.suffix.model.state_dict().items()}
    made.suffix.model.load_state_dict(same)
    made.suffix.model.get_parameter("head.weight").data += 1
    assert extract(made, tmp_path).computed == 32
    fl.freeze(made.suffix.model, "head.weight")
    assert extract(made, tmp_path).computed == 0


def test_what_a_forward_leaves_behind_is_no_change(tmp_path: Path) -> None:
    made = cut_net("backbone", Leaving())
    assert extract(made, tmp_path).computed == 64
    again = fl.cut(made.suffix.model, INPUTS[8:11], at="backbone")
    assert extract(again, tmp_path).computed == 0


def test_a_prefix_under_autocast_is_proven_too(tmp_path: Path) -> None:
    """`autocast` is followed as a graph of its own, which reads the tensors it is handed."""

    class Cast(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                held = self.backbone(x)
            out: Tensor = self.head(held.float())
            return out

    made = cut_net(model=Cast())
    extract(made, tmp_path)
    write(made)
    with pytest.raises(fl.CutError, match="changed since"):
        extract(made, tmp_path)


def test_rows_that_were_computed_under_autocast_are_not_read_without(tmp_path: Path) -> None:
    class Wide(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.backbone(x).float())
            return out

    made = cut_net(model=Wide())
    with torch.autocast("cpu", torch.bfloat16):
        extract(made, tmp_path)
    found = extract(made, tmp_path)
    assert found.computed == 64
    assert torch.allclose(found.rows.gather(torch.arange(64))[0], made.prefix(INPUTS)[0], atol=1e-5)
