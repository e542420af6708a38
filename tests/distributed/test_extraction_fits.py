"""What `fl.fit` computes of a frozen part on several processes: stored, and anew in each epoch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from extraction_world import Noise, Reader, Texts, passes, pictures_net
from fits import Fitted, fitted
from ranks import on_ranks
from test_training import assert_alike
from torch import Tensor

import frostline as fl
from frostline.session import pipelines
from frostline.world import world_here


class Live(Noise):
    """Other noise for each epoch, so that there is nothing to store."""

    views = 0

    def why_not_stored(self) -> str:
        return "new noise in every epoch"

    def load(self, row: int) -> Tensor:
        return super().load(row) + row // len(self) * 0.1


def fit_noise(
    features: Path | str, *, precision: str = "auto", live: bool = False
) -> tuple[Fitted, int, int, tuple[str, ...]]:
    """The run; rows that all processes computed, and this one; what it says."""
    train = Live(67) if live else Noise(67)
    with passes() as passed:
        run = fl.fit(
            pictures_net(),
            train,
            Noise(30),
            features=features,
            precision=precision,
            epochs=3,
            lr=0.01,
            batch_size=8,
            device="cpu",
        )
    return fitted(run), run.computed, sum(passed), run.says


@pytest.mark.parametrize("precision", ["auto", "exact"])
def test_rows_are_computed_by_all_and_counted_together(tmp_path: Path, precision: str) -> None:
    shared = on_ranks(_fit_shared, tmp_path / "store", precision)
    alone = fit_noise(tmp_path / "alone", precision=precision)
    assert_alike([run for run, *_ in shared], alone[0])
    assert [computed for _, computed, *_ in shared] == [67, 67]  # the others are the same
    assert sum(here for _, _, here, _ in shared) == alone[2] == 67
    line = "67 rows computed in"
    assert all(any(line in said for said in says) for *_, says in shared)
    forms = [
        [entry.parts["form"] for entry in fl.FeatureStore(tmp_path / of).ls()]
        for of in ("store", "alone")
    ]
    assert forms[0] == forms[1]


def _fit_shared(features: Path, precision: str) -> tuple[Fitted, int, int, tuple[str, ...]]:
    return fit_noise(features, precision=precision)


def _fit_live(features: Path) -> tuple[Fitted, int, int, tuple[str, ...]]:
    return fit_noise(features, precision="exact", live=True)


def test_what_is_new_in_every_epoch_goes_through_the_frozen_part_of_each(tmp_path: Path) -> None:
    shared, alone = on_ranks(_fit_live, tmp_path / "store"), _fit_live(tmp_path / "alone")
    assert_alike([run for run, *_ in shared], alone[0])
    assert len(set(alone[0].losses)) == 3
    assert [computed for _, computed, *_ in shared] == [30, 30]  # validation
    assert any("new noise in every epoch" in said for said in shared[0][3])


class Careless(Reader):
    """The mean over all positions of a batch, padding and all, so texts have no features."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mean = torch.tanh(self.hidden(self.words(input_ids))).mean(dim=1)
        found: Tensor = self.head(mean + 0.0 * attention_mask[:, :1])
        return found


def _fit_careless(features: Path) -> tuple[Fitted, tuple[str, ...]]:
    torch.manual_seed(0)
    model = Careless()
    fl.train_only(model, "head")
    texts = Texts(40), Texts(20)
    options = {"epochs": 2, "lr": 0.01, "batch_size": 8, "device": "cpu", "features": features}
    run = fl.fit(model, *texts, precision="exact", **options)
    return fitted(run), run.says


def test_all_do_without_features_where_the_first_finds_that_padding_matters(tmp_path: Path) -> None:
    shared = on_ranks(_fit_careless, tmp_path)
    assert all(any("no features are stored" in line for line in says) for _, says in shared)
    first, second = (found for found, _ in shared)
    assert first.losses == second.losses


def _fit_without_a_store(root: Path) -> tuple[Fitted, tuple[str, ...]]:
    """The user's own store cannot be written by the second process."""
    pipelines.WORTH_OPERATIONS = {"cpu": 0.0}
    own = root / ("file" if world_here("cpu").rank else "store")
    os.environ["FROSTLINE_FEATURES"] = str(own)
    found, _, _, says = fit_noise("auto", precision="exact")
    return found, says


def test_all_do_without_a_store_that_one_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shared = on_ranks(_fit_without_a_store, tmp_path)
    assert all(says[0].startswith("Features  none are stored: ") for _, says in shared)
    assert all("cannot write features to" in says[0] for _, says in shared)
    assert_alike([found for found, _ in shared], fit_noise("off", precision="exact")[0])
