"""Networks as prefixes, made once."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tuning_prefixes import NETWORKS, Known, alive, prefix_of


@cache
def _made(name: str) -> Known:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    model, given = alive(make()), inputs()
    return model, prefix_of(model, *given), given


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Known:
    """A model, its prefix and a batch, for each of the networks."""
    return _made(request.param)


@pytest.fixture
def resnet() -> Known:
    return _made("resnet18")


@pytest.fixture
def small() -> Known:
    """Two convolutions with a batch norm each."""
    return _made("small")


@pytest.fixture
def words() -> Known:
    return _made("words")
