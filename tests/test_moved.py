"""Models that version 0.1 saved whole, with the class paths of then, are read."""

from __future__ import annotations

import pickle
import pickletools
import warnings
from importlib import import_module

import pytest
import torch
from torch import nn

import frostline as fl
from frostline._moved import _MOVED
from frostline.freezing.held_layers import Recomputed, WhereWhole
from frostline.freezing.modes import is_held


def _as_of_then(raw: bytes) -> bytes:
    """A pickle of protocol 2, in which each class is named in two lines, by the old names."""
    for old, new in _MOVED.items():
        raw = raw.replace(_line(new), _line(old))
    return raw


def _line(place: str) -> bytes:
    module, _, name = place.partition(":")
    return f"cfrostline.{module}\n{name}\n".encode()


def _frozen_net() -> tuple[nn.ModuleDict, fl.Frozen]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: one head packs no batches
        layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2)
    parts = {"embed": nn.Embedding(8, 4), "norm": nn.BatchNorm1d(4), "head": nn.Linear(4, 2)}
    net = nn.ModuleDict({"encoder": encoder, **parts})
    encoder.use_nested_tensor = True
    fl.freeze(net, "rows:embed.weight[0:3]")
    return net, fl.freeze(net, "norm | encoder.layers.0", dtype="bfloat16")


def test_a_whole_model_that_was_saved_by_version_0_1_is_frozen_when_it_is_read() -> None:
    net, handle = _frozen_net()
    raw = _as_of_then(pickle.dumps((net, handle), protocol=2))
    named = {text for _, text, _ in pickletools.genops(raw) if isinstance(text, str)}
    assert {"frostline.modes Hold", "frostline.row_holds.kept Kept"} <= named
    again, proof = pickle.loads(raw)
    again.train()
    assert is_held(again["norm"])
    assert not again["encoder"].layers[0].training
    assert isinstance(again["encoder"].__dict__["use_nested_tensor"], WhereWhole)
    before = again["embed"].weight.detach().clone()
    optimizer = torch.optim.SGD(again["embed"].parameters(), lr=0.1, weight_decay=1.0)
    again["embed"](torch.arange(8)).sum().backward()
    optimizer.step()
    assert torch.equal(again["embed"].weight[:3], before[:3])
    assert not torch.equal(again["embed"].weight[3:], before[3:])
    assert again["encoder"].layers[0].linear1.weight.dtype == torch.bfloat16
    again["encoder"].layers[0](torch.zeros(1, 2, 4))
    proof.verify()


@pytest.mark.parametrize("old", _MOVED)
def test_each_moved_name_is_found_where_it_was(old: str) -> None:
    module, _, name = old.partition(":")
    assert callable(getattr(import_module(f"frostline.{module}"), name))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module(f"frostline.{module}").nothing


def test_a_moved_class_is_the_one_that_is_used() -> None:
    assert import_module("frostline.recomputed").Recomputed is Recomputed
