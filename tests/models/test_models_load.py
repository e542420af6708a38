"""`load_model`: the order of its steps, and what is found before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frostline.errors import ConfigError, ModelError, WeightsError
from frostline.models import Stacked, load_model


@pytest.mark.parametrize("place", ["classifier", "logits"])
def test_a_bad_width_is_found_before_the_model_is_looked_for(place: str) -> None:
    with pytest.raises(ConfigError, match="hidden width is 0; it must be a whole number"):
        load_model("no_such_model", weights="none", classes=2, hidden=(0,), on=place)  # type: ignore[arg-type]


def test_a_head_on_the_logits_keeps_the_file_s_classifier(tmp_path: Path) -> None:
    source = load_model("squeezenet1_1", weights="none", classes=1000, on="keep", seed=7)
    torch.save(source.model.state_dict(), tmp_path / "w.pth")
    loaded = load_model("squeezenet1_1", weights=str(tmp_path / "w.pth"), classes=2, on="logits")
    assert isinstance(loaded.model, Stacked)
    assert loaded.head == "head"
    kept = loaded.model.get_parameter("backbone.classifier.1.weight")
    assert torch.equal(kept, source.model.get_parameter("classifier.1.weight"))


def test_a_file_with_another_number_of_classes_loads_where_the_classifier_is_replaced(
    tmp_path: Path,
) -> None:
    tuned = load_model("squeezenet1_1", weights="none", classes=9, seed=7)
    torch.save(tuned.model.state_dict(), tmp_path / "w.pth")
    loaded = load_model("squeezenet1_1", weights=str(tmp_path / "w.pth"), classes=2)
    assert str(loaded.weights).endswith("not used of the file: classifier.1 (it is replaced)")
    assert torch.equal(
        loaded.model.get_parameter("features.0.weight"),
        tuned.model.get_parameter("features.0.weight"),
    )


def test_a_classifier_that_stays_has_as_many_outputs_as_the_file(tmp_path: Path) -> None:
    tuned = load_model("squeezenet1_1", weights="none", classes=9, seed=7)
    torch.save({"state_dict": tuned.model.state_dict()}, tmp_path / "w.pth")
    before = torch.get_rng_state()
    kept = load_model("squeezenet1_1", weights=str(tmp_path / "w.pth"), classes=9, on="keep")
    state = kept.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tuned.model.state_dict().items())
    assert torch.equal(before, torch.get_rng_state())
    stacked = load_model("squeezenet1_1", weights=str(tmp_path / "w.pth"), classes=2, on="logits")
    assert stacked.model.get_parameter("head.weight").shape == (2, 9)
    with pytest.raises(ModelError, match=r"makes 9 logits, and there are 2 classes, .*on='class"):
        load_model("squeezenet1_1", weights=str(tmp_path / "w.pth"), classes=2, on="keep")


def test_a_model_of_one_s_own_keeps_its_outputs_and_refuses_another_number(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(2, 3))\n"
    )
    torch.save({"0.weight": torch.ones(5, 2), "0.bias": torch.ones(5)}, tmp_path / "w.pth")
    own = f"{tmp_path / 'net.py'}:build"
    with pytest.raises(WeightsError, match=r"0\.weight is \(5, 2\) in the file and \(3, 2\) here"):
        load_model(own, weights=str(tmp_path / "w.pth"), classes=5, on="keep")


def test_everything_random_follows_from_the_seed() -> None:
    torch.manual_seed(1)
    first = load_model("squeezenet1_1", weights="none", classes=2, seed=3).model.state_dict()
    torch.manual_seed(2)
    second = load_model("squeezenet1_1", weights="none", classes=2, seed=3).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
