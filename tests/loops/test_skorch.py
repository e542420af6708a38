"""skorch trains frozen models and suffixes as they are; what its Freezer leaves open is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Freezer
from torch import nn

import frostline as fl
from phased_net import net, rows

INPUTS, TARGETS = rows().tensors
BATCH = 13  # two of them: a last one of fewer rows may have other last bits


def trained(module: nn.Module, inputs: torch.Tensor = INPUTS, **options: Any) -> None:
    classifier = NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=0.1,
        batch_size=BATCH,
        max_epochs=3,
        train_split=None,
        verbose=0,
        **options,
    )
    classifier.fit(inputs.numpy(), TARGETS.numpy())
    assert classifier.module_ is module
    assert classifier.predict_proba(inputs.numpy()).shape == (26, 3)


def test_a_frozen_model_stays_frozen_while_skorch_trains_it() -> None:
    model, head = net(), net().head.weight
    frozen = fl.train_only(model, "head")
    trained(model)
    assert frozen.verify().tensors == 14
    assert not torch.equal(model.head.weight, head)


def test_a_suffix_over_stored_features_ends_at_the_bits_of_the_model(tmp_path: Path) -> None:
    model, other = net(), net()
    fl.train_only(model, "head")
    trained(model)
    frozen = fl.train_only(other, "head")
    cut = fl.cut(other, INPUTS)
    features = fl.extract(cut, rows(), tmp_path, precision="exact", batch_size=BATCH)
    (values,) = features.rows.gather(torch.arange(len(features)))
    trained(cut.suffix, values)
    assert torch.equal(other.head.weight, model.head.weight)
    assert frozen.verify().tensors == 14


def test_the_doctor_names_what_the_freezer_of_skorch_leaves_moving() -> None:
    model = net()
    trained(model, callbacks=[Freezer("body.*")])
    found = {finding.code: str(finding) for finding in fl.doctor(model, INPUTS).findings}
    assert "body.1" in found["moving-statistics"]
    assert "body.2" in found["live-dropout"]


@pytest.mark.parametrize("name", ["boddy", "body.weights"])
def test_the_doctor_names_a_pattern_that_the_freezer_of_skorch_missed(name: str) -> None:
    model = net()
    trained(model, callbacks=[Freezer(f"{name}*")])  # which freezes nothing, and says nothing
    found = fl.doctor(model, INPUTS, freeze=name)
    assert not found.ok
    assert found.findings[0].code == "no-match"
    assert "body" in str(found.findings[0])
