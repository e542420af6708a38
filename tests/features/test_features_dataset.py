"""Features are a data set that a DataLoader reads, and the suffix takes its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ragged_nets import pictures_net, words, words_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

import frostline as fl
from frostline.features import FeatureData

DRAW = torch.Generator().manual_seed(0)
X, CLASSES = torch.randn(22, 6, generator=DRAW), torch.arange(22) % 2


class Two(nn.Module):
    """Two values cross the line; the loss is computed where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(6, 4), nn.Linear(6, 3)
        self.left, self.right = nn.Linear(4, 2), nn.Linear(3, 2)
        fl.freeze(self, "low | high")

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.left(self.low(x).relu()) + self.right(self.high(x).tanh())
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class One(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        fl.freeze(self, "0")


def items(change: int = 0) -> list[dict[str, Any]]:
    pairs = enumerate(zip(X, CLASSES.tolist(), strict=True))
    return [{"x": x, "labels": (c + (i < change)) % 2, "name": f"{i}"} for i, (x, c) in pairs]


@pytest.fixture
def by_place(tmp_path: Path) -> tuple[fl.Cut, FeatureData]:
    made = fl.cut(One(), X[:4])
    return made, fl.extract(made, TensorDataset(X, CLASSES), tmp_path, precision="exact")


@pytest.fixture
def by_name(tmp_path: Path) -> tuple[fl.Cut, FeatureData]:
    made = fl.cut(Two(), {"x": X[:4], "labels": CLASSES[:4]})
    return made, fl.extract(made, items(), tmp_path, precision="exact")


def test_features_by_place_are_pairs_that_any_loader_takes(
    by_place: tuple[fl.Cut, FeatureData],
) -> None:
    made, found = by_place
    assert isinstance(found, Dataset)
    value, target = found[-1]
    assert torch.equal(value, made.prefix(X)[0][-1])
    assert int(target) == CLASSES[-1]
    for options in ({}, {"collate_fn": found.collate}):
        values, targets = next(iter(DataLoader(found, batch_size=22, **options)))
        assert torch.equal(made.suffix(values), made.suffix.model(X))
        assert torch.equal(targets, CLASSES)
    with pytest.raises(IndexError):
        found[22]


def test_several_values_by_place_go_into_the_suffix_as_one_tuple(tmp_path: Path) -> None:
    made = fl.cut(Two(), X[:4])
    found = fl.extract(made, TensorDataset(X, CLASSES), tmp_path, precision="exact")
    values, _ = default_collate([found[i] for i in range(22)])
    assert len(values) == 2
    assert torch.equal(made.suffix(values), made.suffix.model(X))


def test_features_by_name_give_labels_and_the_models_own_loss(
    by_name: tuple[fl.Cut, FeatureData],
) -> None:
    made, found = by_name
    batch = next(iter(found.loader(batch_size=22, shuffle=False)))
    assert tuple(batch) == made.frontier.names
    assert all(name.isidentifier() for name in batch)
    out, plain = made.suffix(**batch), made.suffix.model(X, CLASSES)
    assert torch.equal(out["loss"], plain["loss"])
    assert torch.equal(out["logits"], plain["logits"])
    whole = default_collate([found[i] for i in range(22)])
    assert all(torch.equal(whole[name], batch[name]) for name in batch)


def test_labels_may_change_without_a_row_being_computed_anew(
    by_name: tuple[fl.Cut, FeatureData], tmp_path: Path
) -> None:
    made, _ = by_name
    again = fl.extract(made, items(change=3), tmp_path, precision="exact")
    assert again.computed == 0
    assert torch.equal(again[0]["labels"], 1 - CLASSES[0])


def test_pairs_under_a_cut_with_labels_share_rows_with_mappings_and_get_the_names(
    by_name: tuple[fl.Cut, FeatureData], tmp_path: Path
) -> None:
    made, found = by_name
    pairs = fl.extract(made, TensorDataset(X, CLASSES), tmp_path, precision="exact")
    assert {n: v.tolist() for n, v in pairs[5].items()} == {
        n: v.tolist() for n, v in found[5].items()
    }


def test_labels_of_the_items_are_there_for_a_loss_of_ones_own(tmp_path: Path) -> None:
    made = fl.cut(Two(), {"x": X[:4]})
    found = fl.extract(made, items(), tmp_path, precision="exact")
    batch = next(iter(found.loader(22, shuffle=False)))
    assert torch.equal(batch.pop("labels"), CLASSES)
    assert torch.equal(made.suffix(**batch), made.suffix.model(X))
    bare = [{"x": x} for x in X]
    assert "labels" not in fl.extract(made, bare, tmp_path, precision="exact")[0]


def test_a_loader_goes_by_seed_and_epoch_and_leaves_torchs_generator_alone(
    by_place: tuple[fl.Cut, FeatureData],
) -> None:
    found = by_place[1]

    def epochs(loader: DataLoader[Any], count: int) -> list[list[int]]:
        return [[int(v) for _, t in loader for v in t] for _ in range(count)]

    torch.manual_seed(3)
    state = torch.get_rng_state()
    numbered = FeatureDataNumbered(found)
    first, second = epochs(numbered.loader(), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(22))
    assert epochs(numbered.loader(), 2) == [first, second]
    assert epochs(numbered.loader(seed=1), 1) != [first]
    resumed = numbered.loader()
    resumed.sampler.set_epoch(1)
    assert epochs(resumed, 1) == [second]
    assert [
        batch.targets.tolist()
        for batch in numbered.data.batches(batch_size=8, shuffle=True).epoch(1)
    ] == [second[:8], second[8:16], second[16:]]


class FeatureDataNumbered:
    """The same features with each sample's number for a target."""

    def __init__(self, found: FeatureData) -> None:
        from dataclasses import replace

        self.data = replace(found, targets=torch.arange(len(found)))

    def loader(self, **options: Any) -> DataLoader[Any]:
        return self.data.loader(8, **options)


def test_a_loader_says_what_trainers_ask(by_place: tuple[fl.Cut, FeatureData]) -> None:
    found = by_place[1]
    loader = found.loader(8)
    assert (len(loader), loader.batch_size, loader.dataset, loader.num_workers) == (3, 8, found, 0)
    assert len(found.loader(8, drop_last=True)) == 2
    with pytest.raises(fl.ConfigError, match="batches of 0 samples"):
        found.loader(0)


def test_texts_are_padded_to_the_longest_of_a_batch_however_it_is_made(tmp_path: Path) -> None:
    data = words(11)
    made = fl.cut(words_net("Bert", "upper"), data.collate([data.load(i) for i in range(4)]))
    found = fl.extract(made, data, tmp_path, precision="exact")
    rows = [3, 7, 9]
    assert len({data.lengths[row] for row in rows}) == 3
    gathered = found.collate(found.__getitems__(rows))
    one_by_one = found.collate([found[row] for row in rows])
    subset = next(iter(DataLoader(Subset(found, rows), batch_size=3)))
    for name in gathered:
        assert torch.equal(gathered[name], one_by_one[name])
        assert torch.equal(gathered[name], subset[name])
    assert max(v.shape[-1] for v in gathered.values()) >= max(data.lengths[row] for row in rows)


def test_a_collate_makes_batches_of_items_of_any_kind(tmp_path: Path) -> None:
    def collate(pairs: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        return {
            "x": torch.stack([x for x, _ in pairs]),
            "labels": torch.tensor([c for _, c in pairs]),
        }

    made = fl.cut(Two(), {"x": X[:4], "labels": CLASSES[:4]})
    pairs = list(zip(X, CLASSES.tolist(), strict=True))
    found = fl.extract(made, pairs, tmp_path, precision="exact", collate=collate)
    assert torch.equal(found.targets, CLASSES)
    assert tuple(found[0]) == made.frontier.names


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([{"x": X[0], "label": 1}, {"x": X[0, :3], "label": 1}], {}, "do not make a batch as they"),
        ([{"x": X[0]}], {}, "give x, and the cut was made with labels too"),
        ([], {"collate": list}, "has no items that can be counted"),
        ([(X[0], 1)], {"collate": list}, "collate made .* of items of the list. Let it give a map"),
        (items(), {"collate": list, "views": 2}, "asked for a collate over .* with views"),
    ],
)
def test_items_that_do_not_fit_are_refused_with_what_to_do(
    data: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = fl.cut(Two(), {"x": X[:4], "labels": CLASSES[:4]})
    with pytest.raises(fl.DataError, match=message):
        fl.extract(made, data, tmp_path, **options)


class Scaled(nn.Module):
    """Inputs of which some may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 2)
        fl.freeze(self, "body")

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return self.head((self.body(x) if shift is None else self.body(x) + shift) * scale)


@pytest.mark.parametrize(
    ("more", "asked", "fits"),
    [
        ({}, {"shift": torch.ones(4)}, False),
        ({"scale": 2.0}, {"scale": 3.0}, False),
        ({"scale": 2.0}, {"scale": 2.0}, True),
        ({}, {"scale": 2.0}, False),
        ({}, {"other": 2.0}, True),
    ],
)
def test_what_the_forward_takes_of_items_is_as_in_the_example(
    more: dict[str, Any], asked: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    x, model = torch.randn(6, 5, generator=DRAW), Scaled()
    made = fl.cut(model, {"x": x[:4], **more})
    data = [{"x": one, "labels": 0, **asked} for one in x]
    if not fits:
        (name,) = asked
        with pytest.raises(fl.DataError, match=f"give {name}, which the model's forward takes"):
            fl.extract(made, data, tmp_path)
        return
    batch = next(iter(fl.extract(made, data, tmp_path).loader(6, shuffle=False)))
    del batch["labels"]
    assert torch.equal(made.suffix(**batch), model(x, **more))


@pytest.mark.parametrize(
    ("labelled", "given", "message"),
    [
        (True, {}, "got 2 by position. Give labels, or cut with an example that has none"),
        (False, {"labels": CLASSES}, "Cut with an example that has labels, and the suffix gives"),
        (False, {"more": X}, "got 2 by position, more. Give the values of this cut's prefix"),
    ],
)
def test_a_suffix_names_what_it_lacks_or_does_not_know(
    labelled: bool, given: dict[str, Tensor], message: str
) -> None:
    example = {"x": X[:4], **({"labels": CLASSES[:4]} if labelled else {})}
    made = fl.cut(Two(), example)
    with pytest.raises(fl.CutError, match=message):
        made.suffix(torch.zeros(22, 4), torch.zeros(22, 3), **given)


def test_modes_set_module_by_module_reach_the_root_of_the_model() -> None:
    made = fl.cut(Two(), X[:4])
    for module in made.suffix.eval().modules():
        module.training = True
    assert made.suffix.model.training
    assert not made.suffix.eval().model.training


def test_a_model_of_transformers_cut_with_labels_returns_its_own_output_class() -> None:
    pixels = torch.randn(4, 3, 16, 16, generator=DRAW)
    model = pictures_net("head").model
    made = fl.cut(model, {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2, 0])})
    values = dict(
        zip(
            made.frontier.names,
            made.prefix(pixel_values=pixels, labels=torch.tensor([2, 1, 0, 0])),
            strict=True,
        )
    )
    out, plain = made.suffix(**values), model(pixels, labels=torch.tensor([2, 1, 0, 0]))
    assert type(out) is type(plain)
    assert torch.equal(out.loss, plain.loss)
