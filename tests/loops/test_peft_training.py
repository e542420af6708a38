"""Training adapters over a frozen base: the cut through a PEFT model, stored features, deltas."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import stopped_and_resumed
from peft_world import (
    ASKS_BY_AN_OLD_NAME,
    LAYER,
    QUERY,
    Texts,
    adapted,
    bert,
    frozen_around,
    pictures,
    tokens,
    vit,
)
from torch import nn
from torch.utils.data import Dataset

import frostline as fl

Data = Callable[[int, int], Dataset[Any]]

pytestmark = ASKS_BY_AN_OLD_NAME


def words() -> nn.Module:
    model = adapted()
    frozen_around(model)
    return model


@pytest.fixture(scope="module")
def parted() -> tuple[Any, fl.Cut]:
    with warnings.catch_warnings(action="ignore"):  # fixtures see no marks
        model = words()
        return model, fl.cut(model, tokens())


def trained(make: Callable[[], nn.Module], data: Data, features: Any, **options: Any) -> nn.Module:
    model = make()
    train, val = data(20, 1), data(8, 2)
    fl.fit(model, train, val, features=features, precision="exact", batch_size=8, **options)
    return model


def test_adapters_train_on_stored_features_to_the_bits_of_the_plain_loop(tmp_path: Path) -> None:
    model = trained(words, Texts, tmp_path, epochs=2, lr=0.01)
    plain = trained(words, Texts, "off", epochs=2, lr=0.01)
    assert fl.fingerprint(model) == fl.fingerprint(plain)
    fresh = fl.fingerprint(words()).tensors
    moved = {n for n, digest in fl.fingerprint(model).tensors.items() if fresh[n] != digest}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_plan_of_head_then_adapters_of_timm_trains_to_the_bits_of_the_plain_loop(
    tmp_path: Path,
) -> None:
    head, adapters = "**.modules_to_save", "**.lora_* | **.modules_to_save"
    plan = fl.Plan([fl.Phase(train=part, epochs=1, lr=0.01) for part in (head, adapters)])
    model = trained(vit, pictures, tmp_path, plan=plan)
    assert fl.fingerprint(model) == fl.fingerprint(trained(vit, pictures, "off", plan=plan))
    frozen = "**.base_layer | **.patch_embed | **.blocks.0"
    assert fl.fingerprint(model, frozen) == fl.fingerprint(vit(), frozen)


def test_the_line_runs_below_the_first_adapter(parted: tuple[Any, fl.Cut]) -> None:
    _, cut = parted
    assert f"{LAYER}.0.output.LayerNorm" in cut.why
    assert cut.error == 0.0
    assert not any("lora_" in name for name, _ in cut.prefix.read)


def test_a_cut_whose_adapters_are_others_now_computes_for_none(
    parted: tuple[Any, fl.Cut],
) -> None:
    model, cut = parted
    values = cut.prefix(**tokens())
    refused = pytest.raises(fl.CutError, match=r"what was cut any more.*adapter")
    model.base_model.disable_adapter_layers()
    with refused:
        cut.suffix(*values)
    model.base_model.enable_adapter_layers()
    assert cut.suffix(*values).logits.shape == (6, 3)
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    with refused:
        cut.suffix(*values)


def test_a_delta_holds_adapters_and_the_copied_head_and_fits_its_base_alone(tmp_path: Path) -> None:
    model, file = words(), tmp_path / "delta.safetensors"
    with torch.no_grad():
        model.get_parameter(f"{QUERY}.lora_A.default.weight").add_(1)
    fl.save_delta(model, file)
    other = words()
    delta = fl.load_delta(other, file, freeze="as saved")
    assert all("lora_" in name or "modules_to_save" in name for name in delta.tensors)
    assert fl.fingerprint(other) == fl.fingerprint(model)
    merged = words()
    merged.merge_adapter()
    with pytest.raises(fl.DeltaError, match=r"trained on another base.*base_layer\.weight"):
        fl.load_delta(merged, file)


def test_a_delta_is_not_saved_from_a_base_that_was_merged_into(tmp_path: Path) -> None:
    model = words()
    model.merge_adapter()
    with pytest.raises(fl.DeltaError, match=r"query\.base_layer\.weight.*moved since being frozen"):
        fl.save_delta(model, tmp_path / "delta.safetensors")


def test_a_stopped_run_over_adapters_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    stopped_and_resumed(words, Texts(20, 1), Texts(8, 2), tmp_path / "run")


def test_what_was_trained_merges_into_a_model_without_adapters() -> None:
    model = words()
    fl.fit(model, Texts(20, 1), Texts(8, 2), epochs=1, lr=0.01, features="off")
    wanted = model.eval()(**tokens()).logits
    merged = model.merge_and_unload().eval()
    assert type(merged) is type(bert())
    assert torch.allclose(merged(**tokens()).logits, wanted, atol=1e-5)
