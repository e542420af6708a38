"""The doctor names what goes wrong between PEFT and a freeze, and its fixes work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft_world import ASKS_BY_AN_OLD_NAME, LAYER, QUERY, adapted, bert, frozen_around, lora
from torch import nn

import frostline as fl
from frostline.freezing.modes import is_held

pytestmark = ASKS_BY_AN_OLD_NAME


def finding(model: nn.Module, code: str) -> fl.checkup.Finding:
    checkup = fl.doctor(model)
    assert code in checkup.codes, checkup
    assert "check-failed" not in checkup.codes
    return next(found for found in checkup if found.code == code)


def run(fix: str, model: nn.Module) -> None:
    exec(fix, {"fl": fl}, {"model": model})


def healthy() -> nn.Module:
    model = adapted()
    frozen_around(model)
    return model


def test_adapters_over_a_frozen_base_are_healthy() -> None:
    assert fl.doctor(healthy()).codes == ()


def test_adapters_in_a_part_that_was_frozen_before_let_it_train() -> None:
    base = bert()
    frozen = fl.freeze(base, "bert")
    model = adapted(base)
    assert fl.doctor(model).codes == ()
    assert is_held(base.bert)  # the doctor left it as it was
    model.train()
    assert base.bert.training
    frozen.verify()
    assert is_held(model.get_submodule(f"{LAYER}.0"))


@pytest.mark.parametrize("way", ["set_adapter", "disable_adapter"])
def test_adapters_that_peft_switched_on_behind_the_freeze_are_named(way: str) -> None:
    model = healthy()
    fl.freeze(model, "**.lora_*")
    if way == "set_adapter":
        model.set_adapter("default")
    else:
        with model.disable_adapter():
            pass
    found = finding(model, "held-though-trainable")
    assert found.names == ("base_model.model.bert",)
    assert "PEFT switches adapters and its copies of layers on in" in found.why
    run(found.fix, model)
    assert fl.doctor(model).codes == ()


def test_a_copy_that_peft_made_of_a_held_layer_is_named_with_what_lets_it_go() -> None:
    model = healthy()
    model.add_adapter("second", lora())  # copies the frozen head, its hold too
    model.set_adapter("second")
    found = finding(model, "held-though-trainable")
    assert found.names == ("base_model.model.classifier.modules_to_save.second",)
    assert "PEFT switches adapters and its copies of layers on in" in found.why
    run(found.fix, model)
    assert fl.doctor(model).codes == ()


def test_a_layer_that_computes_with_its_merged_weight_is_named_while_its_adapter_trains() -> None:
    model = healthy()
    model.merge_adapter()
    found = finding(model, "merged-adapter")
    assert (found.level, len(found.names)) == ("error", 2)
    assert "its adapter gets no gradient" in found.why
    run(found.fix, model)
    assert "merged-adapter" not in fl.doctor(model).codes


def test_a_merged_adapter_that_does_not_train_is_no_fault() -> None:
    model = healthy()
    model.merge_adapter()
    fl.train_only(model, "**.modules_to_save")
    assert "merged-adapter" not in fl.doctor(model).codes


def test_an_adapter_frozen_with_its_layer_before_it_learnt_is_named() -> None:
    model = adapted(init_lora_weights=True)
    fl.freeze(model, f"{LAYER}.1")
    found = finding(model, "idle-adapter")
    assert (found.level, len(found.names)) == ("warning", 4)
    assert f"{QUERY} (default)" in found.seen
    run(found.fix, model)
    assert "idle-adapter" not in fl.doctor(model).codes
    assert {"lora_A", "lora_B"} == {
        n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad and "lora" in n
    }


def test_an_adapter_that_has_learnt_may_be_frozen() -> None:
    model = healthy()
    fl.freeze(model, f"{LAYER}.1")
    assert fl.doctor(model).codes == ()


def two_adapters(*layers: str) -> nn.Module:
    """Both are computed with, the first is frozen."""
    model = adapted(task_type=None, target_modules=list(layers))
    model.add_adapter("second", lora(task_type=None, target_modules=list(layers)))
    model.base_model.set_adapter(["default", "second"])
    frozen_around(model)
    fl.freeze(model, "**.lora_*.default")
    return model


def test_the_dropout_of_a_frozen_adapter_beside_one_that_trains_is_named() -> None:
    model = two_adapters("query")
    found = finding(model, "adapter-dropout")
    assert found.names == (f"{QUERY}.lora_dropout.default",)
    assert "gives other numbers in each pass" in found.why
    run(found.fix, model)
    assert "adapter-dropout" not in fl.doctor(model).codes


def test_dropouts_of_several_frozen_adapters_are_all_named() -> None:
    found = finding(two_adapters("query", "value"), "adapter-dropout")
    assert len(found.names) == 2
    assert "lora_dropout=0" in found.fix


def test_the_dropout_of_an_adapter_in_a_part_frozen_by_hand_is_a_live_one() -> None:
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("modules_to_save" in name)
    found = finding(model, "live-dropout")
    assert f"{QUERY}.lora_dropout.default" in found.names
    run(found.fix, model)
    assert "live-dropout" not in fl.doctor(model).codes


def test_an_original_that_trains_behind_its_copy_is_named() -> None:
    model = healthy()
    fl.thaw(model, "base_model.model.classifier")
    found = finding(model, "original-trainable")
    assert len(found.names) == 2
    assert "PEFT computes with the copy" in found.why
    run(found.fix, model)
    assert fl.doctor(model).codes == ()


def test_an_original_in_use_is_no_fault() -> None:
    model = healthy()
    fl.thaw(model, "base_model.model.classifier")
    model.base_model.disable_adapter_layers()
    assert "original-trainable" not in fl.doctor(model).codes


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "ia3": lambda: _other("IA3Config", feedforward_modules=[]),
    "oft": lambda: _other("OFTConfig", oft_block_size=4),
    "loha": lambda: _other("LoHaConfig"),
}


def _other(kind: str, **options: object) -> nn.Module:
    import peft

    torch.manual_seed(0)
    config = getattr(peft, kind)(target_modules=["0", "2"], **options)
    made: nn.Module = peft.get_peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)),
        config,
    )
    return made


@pytest.mark.parametrize("kind", OTHERS)
def test_no_check_fails_on_other_kinds_of_adapters(kind: str) -> None:
    model = OTHERS[kind]()
    frozen_around(model)
    assert fl.doctor(model, torch.randn(4, 8)).codes in ((), ("frozen-above-trainable",))
