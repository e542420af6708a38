"""A suffix alone computes and trains as the suffix does, and leaves its model as it is."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.cutting.standalone import Standalone
from phased_net import Net, net, rows

INPUTS, TARGETS = rows(16).tensors


def cut_at(train: str) -> tuple[Net, fl.Cut]:
    model = net()
    fl.train_only(model, train)
    return model, fl.cut(model, INPUTS)


def stepped(module: nn.Module, values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Three steps with dropout and batch norm in train mode, then the output in evaluation."""
    torch.manual_seed(0)
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    module.train()
    for _ in range(3):
        nn.functional.cross_entropy(module(*values), TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
    module.eval()
    with torch.no_grad():
        output: torch.Tensor = module(*values)
    return output


@pytest.mark.parametrize("train", ["head", "neck | head", "neck.1 | head"])
def test_it_trains_to_the_bits_of_the_suffix_and_leaves_the_model(train: str) -> None:
    model, cut = cut_at(train)
    values, before = cut.prefix(INPUTS), fl.fingerprint(model)
    alone = cut.suffix.alone()
    found = stepped(alone, values)
    assert fl.fingerprint(model) == before
    assert torch.equal(found, stepped(cut.suffix, values))
    ours, theirs = dict(alone.model.named_parameters()), dict(model.named_parameters())
    assert ours
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


def test_it_holds_what_is_read_above_the_line_alone() -> None:
    _, cut = cut_at("neck.1 | head")
    alone = cut.suffix.alone()
    names = {name for name, _ in alone.model.named_modules() if name}
    assert names == {"neck", "neck.1", "head"}
    assert len(pickle.dumps(alone)) < 20_000


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_it_trains_alike(way: object) -> None:
    _, cut = cut_at("neck | head")
    values, alone = cut.prefix(INPUTS), cut.suffix.alone()
    copied: Standalone = way(alone)  # type: ignore[operator]
    assert torch.equal(stepped(alone, values), stepped(copied, values))


def test_a_train_method_of_the_model_that_looks_for_its_parts_does_no_harm() -> None:
    class Own(Net):
        def train(self, mode: bool = True) -> Own:
            super().train(mode)
            self.body[1].eval()
            return self

    torch.manual_seed(0)
    model = Own()
    fl.train_only(model, "head")
    cut = fl.cut(model, INPUTS)
    assert torch.isfinite(stepped(cut.suffix.alone(), cut.prefix(INPUTS))).all()


def test_a_batch_of_one_is_refused_where_the_model_refuses_it() -> None:
    _, cut = cut_at("neck | head")
    alone = cut.suffix.alone().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        alone(*cut.prefix(INPUTS[:1]))


def test_a_suffix_behind_a_named_submodule_cannot_stand_alone() -> None:
    model = net()
    fl.train_only(model, "head")
    cut = fl.cut(model, INPUTS, at="body")
    with pytest.raises(fl.CutError, match=r"cannot stand alone.*Cut without at="):
        cut.suffix.alone()
