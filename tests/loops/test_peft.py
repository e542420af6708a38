"""PEFT around a frozen model: the freeze holds whatever PEFT calls, or the proof says what does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft_world import (
    ASKS_BY_AN_OLD_NAME,
    BELOW,
    LAYER,
    QUERY,
    adapted,
    bert,
    frozen_around,
    lora,
    off,
    tokens,
)
from torch import nn

import frostline as fl
from frostline.freezing.modes import is_held

pytestmark = ASKS_BY_AN_OLD_NAME


def in_training(model: nn.Module, path: str) -> bool:
    model.train()
    return model.get_submodule(path).training


def test_a_freeze_before_the_adapters_is_proved_after_them() -> None:
    base = bert()
    frozen = fl.freeze(base, "bert")
    model = adapted(base)
    assert frozen.verify().tensors == len(frozen.records)
    assert fl.summary(model).total.trainable == sum(
        p.numel() for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n
    )


def test_a_weight_that_moved_within_an_adapted_layer_is_found_by_the_freeze_before() -> None:
    base = bert()
    frozen = fl.freeze(base, "bert")
    model = adapted(base)
    with torch.no_grad():
        model.get_parameter(f"{QUERY}.base_layer.weight")[0, 0] += 1
    with pytest.raises(fl.DriftError, match=r"layer\.1\.attention\.self\.query\.weight: moved by"):
        frozen.verify()


def test_another_layer_in_place_of_a_frozen_one_is_no_wrapper_around_it() -> None:
    base = bert()
    frozen = fl.freeze(base, "bert")
    attention = base.get_submodule("bert.encoder.layer.1.attention.self")
    attention.query, attention.key = attention.key, attention.query
    with pytest.raises(fl.DriftError, match=r"self\.query\.weight: is gone; it or the module"):
        frozen.verify()


def test_blocks_without_adapters_are_held_and_those_with_them_follow_the_mode() -> None:
    model = adapted()
    frozen_around(model)
    for path in (f"{LAYER}.0.output.dropout", "base_model.model.bert.embeddings.dropout"):
        assert not in_training(model, path)
    assert in_training(model, f"{QUERY}.lora_dropout.default")
    assert in_training(model, f"{LAYER}.1.attention.self.dropout")
    assert is_held(model.get_submodule(f"{QUERY}.base_layer"))


def test_the_base_has_one_fingerprint_with_adapters_and_without() -> None:
    plain = fl.fingerprint(bert(), "bert").tensors
    found = fl.fingerprint(adapted(), "base_model.model.bert & ~**.lora_*").tensors
    short = {
        n.removeprefix("base_model.model.").replace("base_layer.", ""): d for n, d in found.items()
    }
    assert short == dict(plain)


@pytest.mark.parametrize("way", ["set_adapter", "disable_adapter"])
def test_a_frozen_adapter_that_peft_switches_on_again_is_named_by_the_proof(way: str) -> None:
    model = adapted()
    frozen = fl.freeze(model, "**.lora_*")
    if way == "set_adapter":
        model.set_adapter("default")
    else:
        with model.disable_adapter():
            frozen.verify()
    with pytest.raises(fl.DriftError, match=r"lora_A\.default\.weight: wants gradients again"):
        frozen.verify()


def test_no_adapter_that_peft_switches_thaws_the_base() -> None:
    model = adapted()
    frozen = frozen_around(model)
    model.add_adapter("second", lora())
    for name in ("second", "default", "second"):
        model.set_adapter(name)
        with model.disable_adapter():
            pass
        frozen.verify()


def test_a_frozen_adapter_stays_so_while_another_one_is_set() -> None:
    model = adapted()
    model.add_adapter("second", lora())
    model.set_adapter("second")
    frozen = fl.freeze(model, "**.lora_*.default")
    model.set_adapter("second")
    frozen.verify()


def test_merging_is_said_to_move_the_frozen_weights_it_moves_and_no_others() -> None:
    model = adapted()
    frozen = frozen_around(model)
    model.merge_adapter()
    with pytest.raises(fl.DriftError) as raised:
        frozen.verify()
    assert {drift.name for drift in raised.value.drifts} == {
        f"{LAYER}.1.attention.self.{name}.base_layer.weight" for name in ("query", "value")
    }


def test_taking_the_adapters_off_leaves_all_that_was_frozen_proved() -> None:
    model = adapted()
    frozen = fl.freeze(model, [p for p in off(model) if p.shape[0] != 3])  # all but the classifier
    base = model.unload()
    frozen.verify()
    assert not any(p.requires_grad for p in base.get_submodule("bert").parameters())
    assert fl.fingerprint(base, "bert") == fl.fingerprint(bert(), "bert")


def test_merging_for_good_keeps_what_had_no_adapter_frozen_and_held() -> None:
    model = adapted()
    frozen_around(model)
    below = fl.freeze(model, BELOW)
    merged = model.merge_and_unload()
    below.verify()
    assert not any(p.requires_grad for p in merged.get_submodule("bert").parameters())
    assert not in_training(merged, "bert.encoder.layer.0.output.dropout")


def test_adapters_loaded_onto_a_frozen_base_leave_it_frozen(tmp_path: Path) -> None:
    first = adapted()
    frozen_around(first)
    first.save_pretrained(tmp_path)
    for trains in (False, True):
        base = bert()
        frozen = fl.freeze(base, "bert")
        loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=trains)
        frozen.verify()
        assert any("lora_" in n for n, p in loaded.named_parameters() if p.requires_grad) == trains
        first.eval(), loaded.eval()
        assert torch.equal(first(**tokens()).logits, loaded(**tokens()).logits)


def test_a_plan_goes_from_the_head_to_the_adapters_and_back_to_all_that_peft_trains() -> None:
    model = adapted()
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    fl.train_only(model, "**.modules_to_save")
    head = {n for n, p in model.named_parameters() if p.requires_grad}
    fl.train_only(model, "**.lora_* | **.modules_to_save")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted
    assert head < wanted
