"""What `fl.fit` computes of a frozen part on several processes: stored, and anew in each epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
from extraction_world import Noise, passes, pictures_net
from fits import Fitted, fitted
from ranks import on_ranks
from test_training import assert_alike
from torch import Tensor

import frostline as fl


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
