"""Samples of different lengths: stored without padding, and trained on as the plain loop does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ragged_nets import (
    WORDS,
    Means,
    Padded,
    Reader,
    Vectors,
    pictures,
    pictures_net,
    reader,
    recordings,
    recordings_net,
    vectors_net,
    words,
    words_net,
)
from torch import Tensor, nn

import frostline as fl
from frostline.data import Order, inputs_of, make_batches
from frostline.features import Computing, FeatureData, PaddingMatters

PADS = {"Roberta": 1, "MPNet": 1}


def trained(forward: Any, model: nn.Module, batches: list[tuple[Any, Tensor]]) -> Tensor:
    """The trained parameters after a step of SGD on each batch, in one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    model.train()
    torch.manual_seed(0)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(inputs), targets).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters])


def both_ways(model: nn.Module, data: Any, store: Path) -> tuple[Tensor, Tensor, FeatureData]:
    """Trained plainly and on stored features, from the same start and on the same batches."""
    cut = fl.cut(model, inputs_of(data, range(4)))
    found = fl.extract(cut, data, store, precision="exact")
    places = [
        batch.tolist() for batch in Order(len(data), 4, True, 0, lengths=data.lengths).epoch(0)
    ]
    plain = [(inputs_of(data, rows), data.targets[rows]) for rows in places]
    start = copy.deepcopy(model.state_dict())
    call = (lambda x: model(**x)) if isinstance(plain[0][0], dict) else model
    one = trained(call, model, plain)
    model.load_state_dict(start)
    epoch = found.batches(batch_size=4, shuffle=True).epoch(0)
    stored = [(batch.inputs, batch.targets) for batch in epoch]
    return one, trained(lambda values: cut.suffix(*values), model, stored), found


@pytest.mark.parametrize(
    ("kind", "train"),
    [("Bert", "head"), ("ViT", "head"), *((kind, "upper") for kind in (*WORDS, "Wav2Vec2", "ViT"))],
)
def test_stored_features_train_like_padded_batches_within_the_difference_that_is_told(
    kind: str, train: str, tmp_path: Path
) -> None:
    if kind == "ViT":
        model, data = pictures_net(train), pictures(11)
    elif kind == "Wav2Vec2":
        model, data = recordings_net(train), recordings(11)
    else:
        model, data = words_net(kind, train), words(11, pad=PADS.get(kind, 0))
    plain, stored, found = both_ways(model, data, tmp_path)
    told = found.padding.difference
    assert told < 1e-5
    assert float((stored - plain).norm() / plain.norm()) <= max(told, 1e-7)
    assert kind != "ViT" or torch.equal(stored, plain)
    assert all(spec.ragged_count <= 1 for spec in found.rows.specs)  # no mask of pairs is kept


def test_a_mask_whose_padding_is_true_is_put_back_as_it_was(tmp_path: Path) -> None:
    plain, stored, found = both_ways(reader(), words(11), tmp_path)
    assert found.padding.pads.fills == (1.0, 0.0)
    assert float((stored - plain).norm() / plain.norm()) < 1e-6


@pytest.mark.parametrize(
    ("options", "at_start", "why"),
    [
        ({"below": "no mask"}, False, "what is frozen gives them other values"),
        ({}, True, "what is frozen gives them other values"),  # positions are counted from there
        ({"above": "mean"}, False, "what is trained reads the places that are padded"),
        ({"above": "norm"}, False, "what is trained reads the places that are padded"),
    ],
)
def test_what_depends_on_padding_is_not_stored(
    options: dict[str, str], at_start: bool, why: str, tmp_path: Path
) -> None:
    data = words(11, at_start=at_start)
    cut = fl.cut(reader(**options), inputs_of(data, range(4)))
    with pytest.raises(PaddingMatters, match=why):
        fl.extract(cut, data, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_output_for_each_position_is_judged_where_it_is_the_samples_own(tmp_path: Path) -> None:
    data = words(11)
    cut = fl.cut(reader(above="positions"), inputs_of(data, range(4)))
    assert fl.extract(cut, data, tmp_path).padding.difference < 1e-5


def test_padding_before_the_samples_is_put_back_there(tmp_path: Path) -> None:
    data = words(11, at_start=True)
    cut = fl.cut(reader(below="no positions", above="positions"), inputs_of(data, range(4)))
    found = fl.extract(cut, data, tmp_path, precision="exact")
    rows = [3, 7, 9]
    assert len({data.lengths[row] for row in rows}) == 3
    values = found.rows.gather(torch.tensor(rows), pads=found.padding.pads)
    hidden, mask = cut.prefix(**inputs_of(data, rows))
    own = ~mask[:, 0]
    assert torch.equal(values[1], mask)
    torch.testing.assert_close(values[0][own], hidden[own])


def test_a_run_tells_once_why_texts_are_not_stored_and_trains_as_the_plain_loop(
    tmp_path: Path,
) -> None:
    wanted: dict[str, Any] = {"epochs": 1, "batch_size": 4, "precision": "exact", "device": "cpu"}
    runs = [
        fl.fit(reader(below="no mask"), words(11), words(9, seed=1), features=where, **wanted)
        for where in ("off", tmp_path)
    ]
    assert fl.fingerprint(runs[0].model) == fl.fingerprint(runs[1].model)
    assert sum("for samples of different lengths" in line for line in runs[1].says) == 1


def test_a_run_on_texts_tells_how_far_padding_moves_its_rows(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"epochs": 2, "batch_size": 4, "precision": "exact", "device": "cpu"}
    runs = [
        fl.fit(reader(), words(11), words(9, seed=1), features=where, **wanted)
        for where in ("off", tmp_path)
    ]
    losses = [[record.train["loss"] for record in run.history] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert runs[1].computed == 20
    assert sum("however far their batch is padded" in line for line in runs[1].says) == 1


class Passes:
    """Positions that went through a prefix, padding and all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions = 0
        plain = Computing.__call__

        def counted(compute: Computing, inputs: Any) -> tuple[Tensor, ...]:
            self.positions += inputs["input_ids"].numel()
            return plain(compute, inputs)

        monkeypatch.setattr(Computing, "__call__", counted)


@pytest.fixture(scope="module")
def reader_cut() -> fl.Cut:
    return fl.cut(reader(), inputs_of(words(20), range(4)))


@pytest.mark.parametrize("says", [True, False])
def test_passes_are_made_of_samples_of_like_length(
    says: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader_cut: fl.Cut
) -> None:
    data = words(40)
    own = sum(data.lengths or ())
    if not says:
        data.lengths = None
    passes = Passes(monkeypatch)
    fl.extract(reader_cut, data, tmp_path, batch_size=4, precision=1.0)
    assert passes.positions < 1.15 * own


def test_new_texts_cost_what_is_new_and_rows_have_the_bytes_of_their_length(
    tmp_path: Path, reader_cut: fl.Cut
) -> None:
    data = words(20)
    few = Padded([data.load(row) for row in range(15)], pad=lambda _: 0, at_start=False)
    assert fl.extract(reader_cut, few, tmp_path, precision=1.0).computed == 15
    found = fl.extract(reader_cut, data, tmp_path, precision=1.0)
    assert found.computed == 5
    assert found.nbytes == sum(data.lengths or ()) * (1 + Reader.WIDTH * 4)
    assert "[?] bool and [?, 16] float32 each" in repr(found)


def test_a_model_for_one_length_is_refused_for_samples_of_several(tmp_path: Path) -> None:
    class Flat(nn.Sequential):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(input_ids * attention_mask)

    model = Flat(nn.Embedding(60, 2), nn.Flatten(), nn.Linear(40, 8), nn.Linear(8, 3))
    fl.train_only(model, "3")
    data = words(11)
    longest = max(range(11), key=(data.lengths or [0]).__getitem__)
    assert (data.lengths or [0])[longest] == 20
    cut = fl.cut(model, inputs_of(data, [longest, 0]))
    with pytest.raises(fl.CutError, match="samples of one length only, and the data set has sev"):
        fl.extract(cut, data, tmp_path)


class LastToken(nn.Module):
    """Takes a sample's last token, found in the ids, as decoders with a score do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(60, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.middle(self.embed(ids)).tanh()
        places = torch.arange(ids.shape[1]).expand_as(ids)
        last = (places * (ids != 0)).argmax(dim=1)
        out: Tensor = self.head(states)[torch.arange(ids.shape[0]), last]
        return out


def test_a_place_that_padding_before_a_sample_moves_is_named(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    loaded = [{"ids": torch.randint(1, 60, (4 + row % 5,), generator=draw)} for row in range(11)]
    model = LastToken()
    fl.train_only(model, "head")
    for at_start in (True, False):
        data = Padded(loaded, pad=lambda _: 0, at_start=at_start)
        cut = fl.cut(model, inputs_of(data, range(5)))
        assert any(not value.dtype.is_floating_point for value in cut.frontier.values)
        if at_start:
            with pytest.raises(
                PaddingMatters, match=r"is a place in the batch.*padding_side='right'"
            ):
                fl.extract(cut, data, tmp_path / "left")
        else:
            assert fl.extract(cut, data, tmp_path / "right").computed == 11


@pytest.mark.parametrize("says", [True, False])
def test_a_second_input_that_is_padded_is_tried_where_the_first_is_of_one_length(
    says: bool, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    loaded = [
        {"a": torch.randint(3, 60, (8,), generator=draw), "b": torch.arange(3, 5 + row % 5)}
        for row in range(11)
    ]
    data = Padded(loaded, pad=lambda _: 0, at_start=True)
    data.lengths = [8] * 11 if says else None
    cut = fl.cut(Means(), inputs_of(data, range(5)))
    with pytest.raises(PaddingMatters, match="what is frozen gives them other values"):
        fl.extract(cut, data, tmp_path)


@pytest.mark.parametrize("longer", [range(11), [7]], ids=["most", "one that is not looked at"])
def test_samples_of_vectors_that_collate_pads_are_not_stored_and_train_as_plainly(
    longer: Sequence[int], tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    count = 40 if len(longer) == 1 else 11
    sizes = [2 + (row % 5 if row in longer else 0) for row in range(count)]
    data = Vectors([torch.randn(size, 6, generator=draw) for size in sizes])
    wanted: dict[str, Any] = {"epochs": 1, "batch_size": 4, "precision": "exact", "device": "cpu"}
    runs = [fl.fit(vectors_net(), data, data, features=f, **wanted) for f in ("off", tmp_path)]
    assert fl.fingerprint(runs[0].model) == fl.fingerprint(runs[1].model)
    assert "none are stored" in runs[1].says[0]


def test_lengths_that_are_not_one_for_each_sample_are_refused() -> None:
    data = words(11)
    data.lengths = [3, 4]
    with pytest.raises(fl.DataError, match="11 samples and 2 lengths"):
        make_batches(data, batch_size=4, shuffle=True, seed=0)


def test_the_key_does_not_depend_on_how_long_the_example_is(reader_cut: fl.Cut) -> None:
    short = fl.cut(reader(), inputs_of(words(9, most=8), range(4)))
    assert short.key == reader_cut.key
