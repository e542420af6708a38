"""Runs on stored features, by two processes and by four, against the plain loop of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from extraction_world import Texts, texts_net
from fits import PLAN, Fitted, fit_net, fitted
from ranks import on_ranks
from test_training import assert_alike

import frostline as fl


def fit_stored(train: str | None, features: Path | str) -> Fitted:
    plan = {"plan": PLAN} if train is None else {}
    return fit_net(train, features=features, precision="exact", sync_norm=True, **plan)


@pytest.mark.parametrize(("train", "size"), [("head", 4), ("head | top", 4), (None, 2)])
def test_runs_on_stored_features_go_as_the_plain_loop(
    train: str | None, size: int, tmp_path: Path
) -> None:
    shared = on_ranks(fit_stored, train, tmp_path / "store", size=size)
    assert_alike(shared, fit_stored(train, "off"))
    assert fl.FeatureStore(tmp_path / "store").ls()


def fit_texts(features: Path | str) -> Fitted:
    options: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "device": "cpu"}
    data = Texts(45), Texts(21)
    return fitted(fl.fit(texts_net(), *data, features=features, precision="exact", **options))


def test_texts_of_different_lengths_go_as_the_plain_loop(tmp_path: Path) -> None:
    assert_alike(on_ranks(fit_texts, tmp_path / "store"), fit_texts("off"))
    assert fl.FeatureStore(tmp_path / "store").ls()
