"""What cannot be stored is trained plainly, to the same figures, and one line says why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_world import Words, figures, images, pictures_net, word_data, words_net, write_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import frostline as fl
from frostline.data import content_id, stored_samples


class Shaking(Dataset[tuple[Tensor, int]]):
    """Another sample each time, as with random transforms."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(3, 16, 16) + index % 2, index % 2


class Fixed(Shaking):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 16, 16, generator=generator) + index % 2, index % 2


def fit(model: nn.Module, data: object, store: object, **options: Any) -> fl.Run:
    wanted = {"epochs": 2, "batch_size": 8, "device": "cpu", "precision": "exact", **options}
    return fl.fit(model, data, wanted.pop("val", data), features=store, **wanted)  # type: ignore[arg-type]  # options


def test_samples_that_change_are_not_stored(tmp_path: Path) -> None:
    run = fit(pictures_net(), Shaking(), tmp_path, val=Fixed())
    assert run.computed == 20  # validation alone
    told = [line for line in run.says if "gives another sample each time it is asked" in line]
    assert len(told) == 1
    assert "Leave random transforms out of it" in told[0]


def test_a_data_set_that_holds_still_is_stored(tmp_path: Path) -> None:
    plain = fit(pictures_net(), Fixed(), "off")
    run = fit(pictures_net(), Fixed(), tmp_path)
    assert run.computed == 20
    assert figures(run) == figures(plain)


def test_a_loader_keeps_its_batches_and_goes_through_the_prefix(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(3)
        return DataLoader(Fixed(), batch_size=6, shuffle=True, generator=generator)

    plain = fit(pictures_net(), loader(), "off", val=Fixed())
    run = fit(pictures_net(), loader(), tmp_path, val=Fixed())
    assert run.computed == 20
    assert any("a DataLoader makes its own batches" in line for line in run.says)
    assert len(run.history) == len(plain.history)


def test_where_nothing_below_is_frozen_the_run_is_plain_and_says_so(tmp_path: Path) -> None:
    model = pictures_net()
    fl.thaw(model, "features.0")
    run = fit(model, Fixed(), tmp_path)
    assert len(run.says) == 1
    assert run.says[0].startswith("Features  none are stored: nothing in Pictures can be kept")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_cut_is_trained_plainly_and_says_why(tmp_path: Path) -> None:
    class Branching(Words):
        def forward(self, ids: Tensor) -> Tensor:
            read = self.read(self.embed(ids))[0][:, -1]
            if float(read.sum()) > 1e6:  # a decision by the data
                read = read * 2
            return self.head(read)

    torch.manual_seed(0)
    model = Branching()
    fl.freeze(model, "embed | read")
    data = word_data(20, 1)
    run = fit(model, data, tmp_path)
    assert len(run.says) == 1
    assert run.says[0].startswith("Features  none are stored: ")
    assert figures(run) == figures(fit(words_net(), data, "off"))


def test_norms_that_adapt_are_not_stored(tmp_path: Path) -> None:
    model = pictures_net()
    fl.thaw(model, "features")
    fl.freeze(model, "features", norm="adapt")
    run = fit(model, Fixed(), tmp_path)
    assert all("features.1" not in name for name in fl.fingerprint(model, "head").tensors)
    stored = [value for entry in fl.FeatureStore(tmp_path).ls() for value in entry.values]
    assert run.says
    assert all(value.shape != (32,) for value in stored)  # at most what comes before the norm


def test_a_quick_run_does_without_unless_a_store_is_named(tmp_path: Path) -> None:
    data = word_data(20, 1)
    (line,) = fit(words_net(), data, "auto").says
    assert "none are stored: all forwards of the run take about" in line
    assert fit(words_net(), data, tmp_path).computed > 0


def test_features_off_touches_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.session.pipelines.default_store", lambda: tmp_path / "none")
    monkeypatch.setattr("frostline.session.pipelines.WORTH_OPERATIONS", {"cpu": 0.0})
    assert fit(words_net(), word_data(20, 1), "off").says == ()
    assert not (tmp_path / "none").exists()


# Messages


@pytest.mark.parametrize(
    "made",
    [
        lambda: DataLoader(Fixed()),
        lambda: [(torch.zeros(2, 3), torch.zeros(2))],
    ],
    ids=["loader", "list"],
)
def test_ready_made_batches_have_no_samples_to_tell_apart(made: Any) -> None:
    data = made()
    told = rf"a {type(data).__name__} makes its own batches.*Give the data set itself"
    with pytest.raises(fl.DataError, match=told):
        stored_samples(data)


def test_views_of_what_is_no_picture_are_refused() -> None:
    with pytest.raises(fl.DataError, match=r"views are made of pictures.*ImageDataset"):
        stored_samples(word_data(4, 1), views=2)


def test_a_tensor_data_set_without_targets_is_refused() -> None:
    with pytest.raises(fl.DataError, match=r"has 1 tensors\. Give it two: inputs, targets"):
        stored_samples(TensorDataset(torch.zeros(3, 2)))


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    data = word_data(4, 1)
    empty = TensorDataset(*(tensor[:0] for tensor in data.tensors))
    made = fl.cut(words_net(), data.tensors[0])
    with pytest.raises(fl.DataError, match=r"the TensorDataset holds no samples\. Give it a"):
        fl.extract(made, empty, fl.FeatureStore(tmp_path))


def test_live_pictures_have_no_fixed_view(tmp_path: Path) -> None:
    data = images(write_images(tmp_path, 2), augment="live")
    with pytest.raises(fl.DataError, match=r"augment live makes a new view every epoch"):
        stored_samples(data)


def test_an_input_that_holds_text_is_refused() -> None:
    class Texts(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return {"text": f"sample {index}"}, 0

    with pytest.raises(fl.DataError, match=r"an input holds a str, .* Give tensors, arrays or num"):
        stored_samples(Texts())


def test_a_changing_sample_is_named() -> None:
    with pytest.raises(fl.DataError, match=re.escape("(item 0), so there is nothing fixed")):
        stored_samples(Shaking())


class SeldomFlipped(Fixed):
    """Fixed but for a flip of each sample in `share` of the cases."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.asked: dict[int, int] = {}

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked[index] = self.asked.get(index, 0) + 1
        image, label = super().__getitem__(index)
        return (image.flip(-1) if torch.rand(()) < self.share else image), label


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_random_flips_are_noticed(share: float) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        with pytest.raises(fl.DataError, match="gives another sample each time"):
            stored_samples(SeldomFlipped(share))


def test_trying_whether_samples_hold_still_asks_for_a_few_of_all() -> None:
    class Large(SeldomFlipped):
        def __len__(self) -> int:
            return 1_000_000

    data = Large(0.0)
    stored_samples(data)
    assert sum(data.asked.values()) <= 64
    assert max(data.asked) > 900_000


def test_inputs_are_told_apart_by_numbers_shape_type_and_name() -> None:
    zeros = torch.zeros(4)
    different = [
        zeros,
        zeros.double(),
        zeros.view(2, 2),
        torch.zeros(5),
        zeros - 0.0 * -1 + 1e-45,
        (zeros, zeros),
        [zeros, zeros, zeros],
        {"a": zeros},
        {"b": zeros},
        {"a": zeros, "b": zeros},
        np.zeros(3),
        1,
        1.0,
    ]
    assert len({content_id(item) for item in different}) == len(different)
    assert content_id(zeros) == content_id(zeros.clone()) == content_id(np.zeros(4, np.float32))
    assert content_id({"a": zeros, "b": 1}) == content_id({"b": 1, "a": zeros})
    assert content_id(torch.arange(6).view(2, 3).t()) == content_id(
        torch.arange(6).view(2, 3).t().contiguous()
    )
