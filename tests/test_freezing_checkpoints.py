"""Gradient checkpointing of transformers goes on in held layers, which are in eval."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.backward import saved_bytes
from frostline.freezing.held_layers import Recomputed

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable. is deprecated")
IDS = torch.arange(64).view(4, 16) % 50


def bert(*, checkpointing: bool = True) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32}
    config = transformers.BertConfig(
        vocab_size=50, num_hidden_layers=3, num_attention_heads=2, **sizes
    )
    model = transformers.BertModel(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.disable_input_require_grads()
    return model


def loss(model: nn.Module) -> Tensor:
    return model(IDS).last_hidden_state.square().mean()


def saved(model: nn.Module) -> int:
    return saved_bytes(lambda: loss(model), besides=[*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("leaned", [False, True], ids=["plain", "lean"])
def test_held_layers_keep_no_more_than_before_the_freeze(leaned: bool) -> None:
    model = bert()
    before = saved(model)
    fl.train_only(model, "embeddings")
    model.train()
    if leaned:
        fl.lean(model, at_least_bytes=0)
    assert saved(model) <= before
    assert saved(bert(checkpointing=False)) > 3 * before


def test_a_freeze_before_checkpointing_is_switched_on_recomputes_too() -> None:
    before = saved(bert())
    model = bert(checkpointing=False)
    fl.train_only(model, "embeddings")
    model.gradient_checkpointing_enable()
    assert saved(model.train()) <= before


def test_recomputed_held_layers_give_the_same_bits() -> None:
    plain, model = bert(checkpointing=False), bert()
    for one in (plain, model):
        fl.train_only(one, "embeddings")
        torch.manual_seed(1)
        loss(one.train()).backward()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    for name in names:
        expected, found = plain.get_parameter(name).grad, model.get_parameter(name).grad
        assert (expected is None and found is None) or torch.equal(expected, found)


def test_held_layers_are_recomputed_once_by_the_models_own_function() -> None:
    model = bert()
    fl.train_only(model, "embeddings")
    held = model.encoder.layer[1]
    calls: list[bool] = []
    recompute = held._gradient_checkpointing_func

    def counted(run: Any, *args: Any) -> Any:
        calls.append(held.training)
        return recompute(run, *args)

    held._gradient_checkpointing_func = counted
    loss(model.train()).backward()
    assert calls == [False]
    with torch.no_grad():
        loss(model)
    assert calls == [False]


def test_a_frozen_prefix_that_no_gradient_crosses_is_not_recomputed() -> None:
    model = bert()
    fl.freeze(model, "embeddings | encoder.layer.0")
    model.encoder.layer[0]._gradient_checkpointing_func = None  # would fail if it were called
    loss(model.train()).backward()
    assert model.encoder.layer[1].output.dense.weight.grad is not None


@pytest.mark.parametrize("way", ["deepcopy", "save"])
def test_copies_recompute_and_a_thaw_gives_the_layer_its_own_forward(way: str) -> None:
    model = bert()
    before = saved(model)
    frozen = fl.train_only(model, "embeddings")
    if way == "deepcopy":
        copied = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file, pickle_module=pickle)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert saved(copied.train()) <= before
    assert copied.encoder.layer[0].forward.module is copied.encoder.layer[0]
    assert isinstance(model.encoder.layer[0].forward, Recomputed)
    frozen.thaw()
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert saved(model.train()) == before


def test_a_cache_is_not_written_twice() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=50, num_hidden_layers=2, num_attention_heads=2, **sizes
    )
    model = transformers.LlamaModel(config).train()
    model.gradient_checkpointing_enable()
    fl.freeze(model, "layers.0")
    output = model(IDS, use_cache=True)
    output.last_hidden_state.square().mean().backward()
    cache = output.past_key_values
    assert cache is None or cache.get_seq_length() == 0


def test_doctor_names_the_hook_that_leads_the_backward_pass_through_a_frozen_prefix() -> None:
    model = bert()
    model.gradient_checkpointing_enable()
    fl.freeze(model, "embeddings | encoder.layer.0")
    (found,) = fl.doctor(model, {"input_ids": IDS}).findings
    assert found.code == "frozen-above-trainable"
    assert "a hook makes the output of embeddings.word_embeddings, which is frozen" in found.seen
    assert "enable_input_require_grads" in found.why
    assert found.fix.startswith("model.disable_input_require_grads()")
    model.disable_input_require_grads()
    assert fl.doctor(model, {"input_ids": IDS}).findings == ()
